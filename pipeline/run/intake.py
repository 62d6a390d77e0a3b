"""Items of a run's source. If the workers are on this machine, remote files are fetched ahead of them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Container, Iterator

from pipeline import sources
from pipeline.core.records import Item, Outcome
from pipeline.download.ahead import Downloads
from pipeline.run.policy import Listing
from pipeline.run.session import Session


class Intake:
    """The way from a source to the workers. Nothing is listed or fetched before `opened`."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.downloads: Downloads | None = None

    @contextlib.contextmanager
    def opened(self, draw: Callable[[Listing], Iterator[Item | None]]) -> Iterator[Iterator[Item | None]]:
        """Items that `draw` takes from the source, the first drawn on entry: lists are fetched before Progress takes over."""
        cfg, source = self.session.cfg, sources.load(self.session.cfg.source)
        net = sources.fetcher(cfg, self.session.out / "raw", cfg.cache) if sources.is_remote(cfg) else None
        if net and not cfg.address:  # the workers of a cluster fetch for themselves
            self.downloads = Downloads(source, net, cfg.downloads, self.session.finished)

        def listing(ended: Container[str] | None) -> Iterator[Item]:
            known = {"ended": ended} if ended is not None and getattr(source, "LEAVES_OUT", False) else {}
            items: Iterator[Item] = source.items(cfg, cfg.scene.seed, net, **known)
            return items

        try:
            drawn = draw(listing)
            first = list(itertools.islice(drawn, 1))
            yield itertools.chain(first, drawn)
        finally:
            if self.downloads:
                self.downloads.close()

    def stream(self, drawn: Iterator[Item | None], failed: Callable[[Outcome], None]) -> Iterator[Item | None]:
        """Pass on items once their files are fetched; `failed` gets the outcomes of items whose file cannot be fetched."""
        return self.downloads.stream(drawn, failed) if self.downloads else drawn

    def held(self, uid: str) -> int:
        """Bytes of disk that the fetched files of the item `uid` take."""
        return self.downloads.net.disk_budget.held(uid) if self.downloads else 0

    def done(self, item: Item) -> None:
        """Remove the files of an item that was recorded."""
        if self.downloads:
            self.downloads.remove(item.uid)

    def stop(self) -> None:
        """End the stream, and the downloads under way."""
        if self.downloads:
            self.downloads.stop()

    def snapshot(self) -> dict[str, int]:
        """Figures of the downloads for status.json; {} where nothing is fetched here."""
        return self.downloads.snapshot() if self.downloads else {}
