"""Paths, durations, sizes and counts, formatted for display."""

from __future__ import annotations

from pathlib import Path


def shown(path: Path) -> str:
    """`path` relative to the current folder where it lies below, else unchanged."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def duration(seconds: float | None) -> str:
    """Seconds -> 1:02:03, or ? when unknown."""
    if seconds is None:
        return "?"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"


def duration_words(seconds: float) -> str:
    """Seconds -> 3.1 s, 14 min, 2.5 h."""
    for unit, unit_s in (("s", 1.0), ("min", 60.0)):
        if seconds < 120 * unit_s:
            return f"{round(seconds / unit_s, 1):.3g} {unit}"
    return f"{seconds / 3600:.3g} h"


def size(count: float) -> str:
    """Bytes -> 12.3 MB (powers of 1000, as disks are sold)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def reasons_text(reasons: dict[str, int]) -> str:
    """{"empty": 2, "timeout": 1} -> "empty 2, timeout 1"."""
    return ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items(), key=lambda pair: -pair[1]))
