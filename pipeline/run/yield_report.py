"""Report of `clip --report`: which clips can still be had, by their videos' pages alone, and what that does to comparisons."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import track

from pipeline import sources
from pipeline.config.clip import ClipConfig
from pipeline.core.disk import replacing
from pipeline.core.errors import Retry, Skip
from pipeline.core.records import Item
from pipeline.core.text import plain, quoted, reasons_text, shown
from pipeline.formats import trajectories
from pipeline.run.selection import Selection
from pipeline.storage.ledger import Ledger
from pipeline.storage.uploads import LEDGER
from pipeline.video.ytdlp import VideoFetcher

TABLE, LIST, LOOKED = "report.csv", "available.txt", "looked.jsonl"
COLUMNS = ("clip", "video", "url", "state", "reason", "detail")
THERE, GONE, UNKNOWN = "there", "gone", "unknown"
# why a clip of a video that was fetched failed: asking for its page again would not tell
OF_CLIPS = ("unreadable_video", "too_short", "frame_missing", "too_small", "blank", "bad_cameras", "unsupported_camera")


class End(NamedTuple):
    """What is known of a video or a clip. state: THERE, GONE, or UNKNOWN where the failure may pass."""

    state: str
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """Clips and what is known of each, by key. index: number of clips that the evaluation index names, 0 without one."""

    out: Path
    items: dict[str, Item]
    ends: dict[str, End]
    index: int

    @property
    def there(self) -> list[str]:
        """Keys of the clips that can be had."""
        return [key for key, end in self.ends.items() if end.state == THERE]

    def lines(self) -> list[str]:
        """Lines for the user: how many can be had, why not the others, and whether numbers over them compare."""
        whole = self.index or len(self.items)
        videos = {state: {self._video(key) for key, end in self.ends.items() if end.state == state} for state in STATES}
        lacking = whole - len(self.items)
        lines = [f"asked for: {whole:,} clips" + (f", {lacking:,} of them without a camera file" if lacking else "")]
        for state, says in STATES.items():
            some = [end for end in self.ends.values() if end.state == state]
            if some or state == THERE:
                why = Counter(end.reason for end in some if end.reason)
                reasons = f" ({reasons_text(dict(why.most_common()))})" if why else ""
                lines.append(
                    f"{says}: {len(some):,} clips, {len(some) / whole:.1%}, of {len(videos[state]):,} videos{reasons}"
                )
        if self.index:
            lines += self._compared(whole)
        return [*lines, f"by clip: {shown(self.out / TABLE)}"]

    def _video(self, key: str) -> str:
        return str(self.items[key].extra["video"])

    def _compared(self, whole: int) -> list[str]:
        """Say what published numbers over the whole index have to do with those over what can be had."""
        had, names = len(self.there), quoted(self.out / LIST)
        if had == whole:
            return [
                "comparison: every clip of the index can be had, so that numbers over it compare with published ones"
            ]
        return [
            f"comparison: published numbers are means over all {whole:,} clips of the index, yours would be one over {had:,}",
            f"so state how many, and evaluate what you compare with on the same clips: --uids {names}",
        ]


STATES = {THERE: "can be had", GONE: "cannot be had", UNKNOWN: "not known, the same command asks again"}


def report(cfg: ClipConfig) -> Report:
    """Ask for the page of each video whose clips are chosen, at the rate of --videos-per-hour; write OUT/report.csv (a row for
    each clip) and OUT/available.txt (keys that can be had, as --uids takes them). No stream is fetched. cfg is resolved.

    What is known stays: clips that a run in OUT delivered, and pages that an earlier call saw. Raises UserError where the
    server refuses us again and again, with what is known so far written.
    """
    assert cfg.out is not None
    cfg.out.mkdir(parents=True, exist_ok=True)
    source, selection = sources.load(cfg.source), Selection(cfg)
    items = {item.uid: item for item in source.items(cfg, cfg.scene.seed) if selection.takes(item)}
    index = len(trajectories.evaluation_index(cfg.eval_index)) if cfg.eval_index and not cfg.uids else 0
    ends = _of_run(cfg.out, items)
    videos = {str(item.extra["video"]): item.url for key, item in items.items() if key not in ends}
    known = {video: end for video, end in _looked(cfg.out).items() if end.state != UNKNOWN}
    net = sources.fetcher(cfg, cfg.out / "raw", cfg.cache)
    assert isinstance(net, VideoFetcher)
    try:
        with (cfg.out / LOOKED).open("a", encoding="utf-8") as file:
            for video, end in _asked(
                net, {name: url for name, url in videos.items() if name not in known}, cfg.downloads
            ):
                known[video] = end
                file.write(json.dumps([video, *end]) + "\n")
                file.flush()
    finally:
        net.close()
        shutil.rmtree(cfg.out / "raw", ignore_errors=True)
        unseen = End(UNKNOWN, "not_asked")
        ends |= {key: known.get(str(item.extra["video"]), unseen) for key, item in items.items() if key not in ends}
        made = Report(cfg.out, items, {key: ends[key] for key in items}, index)
        _write(made)
    return made


def _asked(net: VideoFetcher, videos: dict[str, str], threads: int) -> Iterator[tuple[str, End]]:
    """Ask for the pages of videos (name -> URL); yields what is known of each. UserError as `VideoFetcher.look` raises it."""

    def look(url: str) -> End:
        try:
            net.look(url)
        except Skip as failure:
            return End(GONE, failure.reason, failure.detail)
        except Retry as failure:
            return End(UNKNOWN, failure.reason, failure.detail)
        return End(THERE)

    with ThreadPoolExecutor(threads, "look") as pool:
        futures = {pool.submit(look, url): video for video, url in videos.items()}
        console = Console(stderr=True)
        try:
            for future in track(
                as_completed(futures), "asking for videos", len(futures), console=console, disable=not futures
            ):
                yield futures[future], future.result()
        finally:
            net.stopped.set()  # threads that wait for the rate limit
            pool.shutdown(cancel_futures=True)


def _of_run(out: Path, items: Iterable[str]) -> dict[str, End]:
    """Ends of the clips that a run in `out` delivered, or whose video does not suit them, by key."""
    if not (out / LEDGER).is_file():
        return {}
    wanted = set(items)
    with Ledger(out / LEDGER, readonly=True) as ledger:
        ends = {uid: End(THERE) for uid in ledger.delivered_in() if uid in wanted}
        for reason in OF_CLIPS:
            found = ledger.examples(reason, len(wanted))
            ends |= {uid: End(GONE, reason, detail) for uid, detail, _ in found if uid in wanted}
    return ends


def _looked(out: Path) -> dict[str, End]:
    """Ends of the videos that earlier calls asked for; a line that was cut is asked for again."""
    found = {}
    if (out / LOOKED).is_file():
        for line in (out / LOOKED).read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                video, *end = json.loads(line)
                found[str(video)] = End(*map(str, end))
            except (ValueError, TypeError):
                continue
    return found


def _write(made: Report) -> None:
    with replacing(made.out / TABLE) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        table = csv.writer(handle, lineterminator="\n")
        table.writerow(COLUMNS)
        for key, item in sorted(made.items.items()):
            table.writerow(map(plain, (key, item.extra["video"], item.url, *made.ends[key])))
    with replacing(made.out / LIST) as temporary:
        temporary.write_text("".join(f"{key}\n" for key in sorted(made.there)), encoding="utf-8")
