"""Which videos of a run could be had: a table beside its shards. What is gone differs from week to week, so results can only be
compared where this is said.
"""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from pathlib import Path

from pipeline.core.disk import replacing
from pipeline.core.records import video_of
from pipeline.core.text import reasons_text, shown
from pipeline.storage.ledger import Ledger

TABLE = "availability.csv"
COLUMNS = ("video", "url", "clips", "delivered", "reasons")


def write(out: Path, ledger: Ledger) -> str:
    """Writes OUT/availability.csv, a line per video that was asked for; returns what it says, in one line.

    reasons: why clips of it failed, as "too_short 2". A video was had where at least one of its clips was delivered.
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
            table.writerow([video, urls[video], delivered + counts.total(), delivered, reasons_text(counts)])
            if not delivered:
                why_not[counts.most_common(1)[0][0]] += 1
    had = len(ends) - why_not.total()
    gone = f" ({reasons_text(why_not)})" if why_not else ""
    share = f", {had / len(ends):.0%}" if ends else ""
    return f"videos: {had} of {len(ends)} had{share}{gone}; list: {shown(out / TABLE)}"
