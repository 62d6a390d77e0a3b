"""Items of a run's source; where they are done on this machine, files that are elsewhere are fetched ahead of the workers."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Container, Iterator

from pipeline import sources
from pipeline.core.records import Item, Outcome
from pipeline.download.ahead import Downloads
from pipeline.run.policy import Listing
from pipeline.run.session import Session
from pipeline.sources.fetchers import fetcher


class Intake:
    """The way from a source to the workers. Nothing is listed or fetched before `opened`."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.downloads: Downloads | None = None

    @contextlib.contextmanager
    def opened(self, draw: Callable[[Listing], Iterator[Item | None]]) -> Iterator[Iterator[Item | None]]:
        """Items that `draw` takes of the source, the first drawn: lists are there, and Progress may take over the terminal."""
        cfg, source = self.session.cfg, sources.load(self.session.cfg.source)
        net = fetcher(cfg, self.session.out / "raw", cfg.cache) if sources.is_remote(cfg) else None
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
        """Hand items on when their files are there; `failed` gets outcomes of items whose file cannot be had."""
        return self.downloads.stream(drawn, failed) if self.downloads else drawn

    def held(self, uid: str) -> int:
        """Bytes of disk that the files of an item take."""
        return self.downloads.net.disk_budget.held(uid) if self.downloads else 0

    def done(self, item: Item) -> None:
        """Remove the files of an item that was recorded."""
        if self.downloads:
            self.downloads.done(item)

    def stop(self) -> None:
        """End the stream, and the downloads under way."""
        if self.downloads:
            self.downloads.stop()

    def snapshot(self) -> dict[str, int]:
        """Figures of the downloads for status.json; {} where nothing is fetched here."""
        return self.downloads.snapshot() if self.downloads else {}
