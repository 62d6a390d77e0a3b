"""Charts as inline SVG: objects over working time without pauses, and lines over any axis. One template draws all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.core.text import duration, duration_words
from pipeline.report.markup import render

PAUSE_S = 300.0  # a longer silence, unless silences of that length are usual, is a pause between sessions
USUAL = 20  # silences up to so many times the median are usual
UNITS = (("s", 1.0), ("minutes", 60.0), ("hours", 3600.0), ("days", 86400.0))
BINS, PER_BIN = 60, 4  # most bins, and least mean number of objects per bin
POINTS = 300  # most points drawn of a line
SMOOTH, MOST_SMOOTH = 25, 500  # values are averaged over 1/SMOOTH of all steps, and over so many steps at most
TOP, GAP = 30, 44  # top of the first panel, gap between two panels, in SVG units
LEAST = 15  # least distance between the names of two lines, in SVG units
MARKS = 9  # most numbers that a plot's x axis can show

Event = tuple[float, str, int]  # (unix time, state, views), as Ledger.timeline has them
Point = tuple[float, float]


@dataclass(frozen=True)
class Clock:
    """Timeline of events without its pauses.

    at: seconds of work at each event. counted: True for events with a measured time, which a session's first event lacks.
    pauses: (seconds of work before the pause, its length in seconds). seconds, objects, views: delivered in the measured time.
    """

    at: np.ndarray
    counted: np.ndarray
    pauses: list[tuple[float, float]]
    seconds: float
    objects: int
    views: int

    @classmethod
    def of(cls, timeline: list[Event]) -> Clock:
        """Find the pauses of a timeline and cut them out."""
        times = np.array([when for when, _, _ in timeline])
        silence = np.diff(times)
        usual = float(np.median(silence)) if len(silence) else 0.0
        paused = silence > max(PAUSE_S, USUAL * usual)
        at = np.concatenate([np.zeros(min(1, len(times))), np.cumsum(np.where(paused, 0, silence))])
        counted = np.concatenate([np.zeros(min(1, len(times)), bool), ~paused])
        measured = [event for event, count in zip(timeline, counted, strict=True) if count and event[1] == "delivered"]
        return cls(
            at=at,
            counted=counted,
            pauses=[(float(at[i]), float(silence[i])) for i in np.flatnonzero(paused)],
            seconds=float(at[-1]) if len(at) else 0.0,
            objects=len(measured),
            views=sum(views for _, _, views in measured),
        )


@dataclass(frozen=True)
class Line:
    """Line of a chart. points: (x, y), x ascending. look: good, other, third, fourth or limit, a class of the style.

    dots: mark each point. area: filled down to the foot of its panel. tip: format of a dot's tip from x and y.
    """

    name: str
    points: Sequence[Point]
    look: str = "good"
    dots: bool = False
    area: bool = False
    tip: str = "{:,g}: {:,.4g}"


@dataclass(frozen=True)
class Panel:
    """Lines of one unit, over bars if there are any.

    low: where the y axis starts; None: near the least value. tall: height in SVG units. steep: logarithmic y. about: ticks.
    bars: (look, tip) -> one value per bin of equal width, stacked.
    """

    title: str
    lines: Sequence[Line] = ()
    low: float | None = None
    tall: int = 150
    steep: bool = False
    about: int = 4
    bars: Mapping[tuple[str, str], np.ndarray] | None = None


@dataclass(frozen=True)
class Frame:
    """Width of a picture, its margins, and the inset of the first and the last x from the margins, in SVG units."""

    width: int = 760
    left: int = 76
    right: int = 14
    inset: int = 0
    names: bool = False
    """Whether lines are named at their ends, in the right margin."""


@dataclass(frozen=True)
class Plot:
    """Lines for a page of findings. series: a line's name -> its points (x, y), x ascending; four lines at most. dots: mark each
    point."""

    series: Mapping[str, Sequence[Point]]
    x_label: str
    y_label: str
    caption: str = ""
    dots: bool = True


def throughput(timeline: list[Event]) -> Any:
    """Markup of objects per hour and objects so far over working time; of a sentence if there is nothing to draw."""
    clock = Clock.of(timeline)
    if clock.seconds <= 0:
        return render("throughput.html", picture=None)
    delivered = np.array([state == "delivered" for _, state, _ in timeline])
    bins = int(np.clip(clock.counted.sum() // PER_BIN, 1, BINS))
    hours, edges = clock.seconds / bins / 3600, np.linspace(0, clock.seconds, bins + 1)
    good, bad = (np.histogram(clock.at[clock.counted & chosen], edges)[0] / hours for chosen in (delivered, ~delivered))
    bars = {("good", "objects/h delivered"): good, ("bad", "objects/h failed"): bad}
    unit, unit_s = unit_of(clock.seconds)
    total = list(zip((clock.at / unit_s).tolist(), np.cumsum(delivered).tolist(), strict=True))
    picture = _draw(
        [
            Panel("objects / hour", low=0.0, tall=110, bars=bars),
            Panel("delivered objects, all together", [Line("", total, area=True)], low=0.0, tall=110),
        ],
        (0.0, clock.seconds / unit_s),
        f"working time ({unit})",
        "objects per hour and delivered objects over working time",
        pauses=[(at / unit_s, f"pause of {duration(length)}") for at, length in clock.pauses],
    )
    wide = duration_words(clock.seconds / bins)
    return render("throughput.html", picture=picture, failed=bad.any(), wide=wide, paused=clock.pauses)


def panels(some: Sequence[Panel], end: float, x_label: str, pauses: Sequence[tuple[float, str]] = ()) -> Any:
    """Markup of panels below each other over x from 0 to `end`. pauses: (x, text) of each pause."""
    label = f"{', '.join(panel.title for panel in some)} over {x_label}"
    named = [line for panel in some for line in panel.lines if len(panel.lines) > 1]
    return render("panels.html", named=named, picture=_draw(some, (0.0, end), x_label, label, pauses=pauses))


def svg(plot: Plot) -> Any:
    """Markup of a plot, in the colours of its page. Raises ValueError if it has no points or more than four lines."""
    points = [point for line in plot.series.values() for point in line]
    if not points or len(plot.series) > 4:
        raise ValueError(f"a plot of {len(plot.series)} lines and {len(points)} points")
    xs = sorted({x for x, _ in points})
    looks = zip(("good", "other", "third", "fourth"), plot.series.items(), strict=False)
    lines = [Line(name, line, look, dots=plot.dots, tip="{:g}: {:.2f}") for look, (name, line) in looks]
    marks = xs if len(xs) <= MARKS else [x for x in _scale(xs, about=5) if xs[0] <= x <= xs[-1]]
    label, frame = f"{plot.y_label} over {plot.x_label}", Frame(620, 52, 112, inset=10, names=True)
    return _draw([Panel(plot.y_label, lines, tall=220, about=5)], (xs[0], xs[-1]), plot.x_label, label, marks, frame)


def smooth(points: Sequence[tuple[int, float]]) -> tuple[list[float], list[float], int]:
    """(steps, means over the last steps, number of steps in a mean) of (step, value); values that are not finite are left out."""
    pairs = np.array([(step, value) for step, value in points if np.isfinite(value)]).reshape(-1, 2)
    width = int(np.clip(len(pairs) // SMOOTH, 1, MOST_SMOOTH))
    sums = np.concatenate([[0.0], np.cumsum(pairs[:, 1])])
    ends = np.unique(np.linspace(1, len(pairs), min(len(pairs), POINTS)).round().astype(int)) if len(pairs) else []
    means = [float((sums[end] - sums[max(0, end - width)]) / min(width, end)) for end in ends]
    return [float(pairs[end - 1, 0]) for end in ends], means, width


def unit_of(seconds: float) -> tuple[str, float]:
    """Name and seconds of the unit in which to show a duration."""
    return next((name, s) for name, s in UNITS if seconds < 180 * s or name == "days")


def _draw(
    some: Sequence[Panel],
    ends: tuple[float, float],
    x_label: str,
    label: str,
    marks: Sequence[float] | None = None,
    frame: Frame = Frame(),
    pauses: Sequence[tuple[float, str]] = (),
) -> Any:
    """Markup of a picture. ends: first and last x. marks: numbers on the x axis; None: round ones. label: for screen readers."""

    def across(x: float) -> float:
        share = (x - ends[0]) / (ends[1] - ends[0]) if ends[1] > ends[0] else 0.5
        start = frame.left + frame.inset
        return round(float(start + (frame.width - frame.right - frame.inset - start) * share), 1)

    drawn, top = [], TOP
    for panel in some:
        drawn.append(_panel(panel, top, across, ends))
        top += panel.tall + GAP
    if marks is None:
        marks = [tick for tick in _scale(ends, ends[0], about=8) if tick <= ends[1] * (1 + 1e-9)]
    return render(
        "chart.html",
        panels=drawn,
        frame=frame,
        foot=top - GAP,
        middle=(frame.left + frame.width - frame.right) / 2,
        ticks=[(across(x), f"{x:,g}") for x in marks],
        pauses=[(across(x), says) for x, says in pauses],
        x_label=x_label,
        label=label,
    )


def _panel(panel: Panel, top: int, across: Callable[[float], float], ends: tuple[float, float]) -> dict[str, Any]:
    """Places in SVG units of a panel's ticks, bars and lines, for the template."""
    bars, foot = panel.bars or {}, top + panel.tall
    stacked = np.sum(list(bars.values()), 0).tolist() if bars else []
    ticks = _scale(
        [*(y for line in panel.lines for _, y in line.points), *stacked], panel.low, panel.steep, panel.about
    )

    def height(value: float) -> float:
        low, high, at = (np.log(each) if panel.steep else each for each in (ticks[0], ticks[-1], value))
        return round(float(foot - panel.tall * (at - low) / (high - low)), 1)

    boxes, below = [], np.zeros(len(stacked))
    edges = np.linspace(*ends, len(stacked) + 1)
    for (look, tip), values in bars.items():
        for left, right, base, value in zip(edges[:-1], edges[1:], below, values, strict=True):
            wide = across(right) - across(left)
            gap, y = min(2.0, wide / 5), height(base + value)
            if value:
                place = round(across(left) + gap / 2, 1), y, round(wide - gap, 1), round(height(base) - y, 1)
                boxes.append((look, *place, f"{value:,.0f} {tip}"))
        below = below + values
    lines: list[dict[str, Any]] = []
    for line in panel.lines:
        kept = np.unique(np.linspace(0, len(line.points) - 1, min(len(line.points), POINTS)).round().astype(int))
        points = [line.points[i] for i in kept]
        at = [(across(x), height(y)) for x, y in points]
        tips = [f"{line.name}, {line.tip.format(x, y)}" for x, y in points]
        lines.append({"line": line, "at": at, "dots": list(zip(at, tips, strict=True)) if line.dots else []})
    floor = -np.inf
    for each in sorted(lines, key=lambda each: each["at"][-1][1]):  # names beside the ends of lines must not overlap
        each["name_y"] = floor = max(each["at"][-1][1], floor + LEAST)
    numbers = [(height(tick), f"{tick:,.0f}" if tick == int(tick) else f"{tick:,g}") for tick in ticks]
    return {"title": panel.title, "top": top, "foot": foot, "ticks": numbers, "boxes": boxes, "lines": lines}


def _step(span: float, about: int) -> float:
    """Round distance between ticks, of which about `about` fit into a span."""
    raw = span / about
    power = float(10.0 ** np.floor(np.log10(raw)))
    return next(s * power for s in (1, 2, 5, 10) if s * power >= raw * (1 - 1e-9))


def _scale(values: Sequence[float], low: float | None = None, steep: bool = False, about: int = 4) -> list[float]:
    """Round numbers from at or below the least value to at or above the largest: two at least. steep: values are positive."""
    least, most = min(values) if low is None else low, max(values)
    if steep:
        powers = range(int(np.floor(np.log10(least))), int(np.ceil(np.log10(most))) + 1)
        rounds = [float(f"{digit}e{power}") for power in powers for digit in (1, 2, 5)]
        first = max(i for i, each in enumerate(rounds) if each <= least * (1 + 1e-9))
        last = min((i for i, each in enumerate(rounds) if each >= most * (1 - 1e-9)), default=len(rounds) - 1)
        return rounds[first : max(last, first + 1) + 1]
    step = _step(max(most - least, abs(most) * 1e-3) or 1.0, about)
    first, last = int(np.floor(least / step + 1e-9)), int(np.ceil(most / step - 1e-9))
    return [round(i * step, 15) for i in range(first, max(last, first + 1) + 1)]
