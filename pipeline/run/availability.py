"""Table of the videos of a run and how many of their clips were delivered, beside the shards. Videos vanish from week to week,
so results of two runs can only be compared where the table is given.
"""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from pathlib import Path

from pipeline.core.disk import replacing
from pipeline.core.records import video_of
from pipeline.core.text import plain, reasons_text, shown
from pipeline.storage.ledger import Ledger

TABLE = "availability.csv"
COLUMNS = ("video", "url", "clips", "delivered", "reasons")


def write(out: Path, ledger: Ledger) -> str:
    """Write OUT/availability.csv, a row per video that was asked for; returns a summary of one line.

    Column reasons: why clips of the video failed, as "too_short 2". A video counts as had if a clip of it was delivered.
    """
    ends: dict[str, Counter[str]] = defaultdict(Counter)
    urls: dict[str, str] = {}
    for url, reason, count in ledger.ends_by_url():
        video = video_of(url)
        urls.setdefault(video, url)
        ends[video][reason] += count
    why_not: Counter[str] = Counter()
    with replacing(out / TABLE) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        table = csv.writer(handle, lineterminator="\n")
        table.writerow(COLUMNS)
        for video, counts in sorted(ends.items()):
            delivered = counts.pop("", 0)
            named = map(plain, (video, urls[video]))
            table.writerow([*named, delivered + counts.total(), delivered, reasons_text(counts)])
            if not delivered:
                why_not[counts.most_common(1)[0][0]] += 1
    if not ends:
        return "videos: none was asked for yet"
    had = len(ends) - why_not.total()
    gone = f" ({reasons_text(why_not)})" if why_not else ""
    return f"videos: {had} of {len(ends)} had, {had / len(ends):.0%}{gone}; list: {shown(out / TABLE)}"
