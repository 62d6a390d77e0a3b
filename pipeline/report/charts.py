"""Charts as inline SVG: objects per hour and objects so far over the time a run really worked, and lines over any axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.core.text import duration, duration_words

PAUSE_S = 300.0  # a longer silence, unless silences of that length are usual, is a pause between sessions
USUAL = 20  # times the median silence
UNITS = (("s", 1.0), ("minutes", 60.0), ("hours", 3600.0), ("days", 86400.0))
BINS, PER_BIN = 60, 4  # at most, and objects in the mean bin at least
POINTS = 300  # of the line
WIDTH, LEFT, RIGHT = 760, 76, 14  # of the picture and its margins, in SVG units
RATE, SUM, FOOT = (30, 140), (184, 294), 338  # (top, bottom) of the two panels; where the time's label stands

Event = tuple[float, str, int]  # (unix time, state, views), as Ledger.timeline has them


@dataclass(frozen=True)
class Clock:
    """A timeline without its pauses.

    at: seconds of work at each event. counted: whether an event has a measured time, which the first of a session has not.
    pauses: (seconds of work before it, its length in seconds). seconds, objects, views: delivered in the measured time.
    """

    at: np.ndarray
    counted: np.ndarray
    pauses: list[tuple[float, float]]
    seconds: float
    objects: int
    views: int

    @classmethod
    def of(cls, timeline: list[Event]) -> Clock:
        """Finds the pauses and cuts them out."""
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


def throughput(timeline: list[Event]) -> str:
    """A timeline -> two panels over one time axis, or a sentence where there is nothing to draw."""
    clock = Clock.of(timeline)
    if clock.seconds <= 0:
        return "<p>Too few objects have ended for a picture over time.</p>"
    delivered = np.array([state == "delivered" for _, state, _ in timeline])
    bins = int(np.clip(clock.counted.sum() // PER_BIN, 1, BINS))
    edges = np.linspace(0, clock.seconds, bins + 1)
    hours = clock.seconds / bins / 3600
    good, bad = (np.histogram(clock.at[clock.counted & chosen], edges)[0] / hours for chosen in (delivered, ~delivered))
    unit, unit_s = next((name, s) for name, s in UNITS if clock.seconds < 180 * s or name == "days")
    parts = [
        _bars(good, bad),
        _line(clock, delivered),
        _time_axis(clock.seconds / unit_s, f"working time ({unit})"),
        _pauses(clock),
    ]
    legend = "<span class='key good'></span> delivered"
    legend += " <span class='key bad'></span> failed" if bad.any() else ""
    pauses = " Dashed: a pause between sessions, cut out." if clock.pauses else ""
    note = f"{legend} · bars of {duration_words(clock.seconds / bins)}.{pauses}"
    label = "objects per hour and delivered objects over working time"
    picture = f"<svg viewBox='0 0 {WIDTH} {FOOT + 12}' role=img aria-label='{label}'>{''.join(parts)}</svg>"
    return f"<p class=note>{note}</p><div class=scroll>{picture}</div>"


def _step(top: float, about: int) -> float:
    """A round distance between about so many ticks up to `top`."""
    raw = top / about
    power = float(10.0 ** np.floor(np.log10(raw)))
    return next(s * power for s in (1, 2, 5, 10) if s * power >= raw * (1 - 1e-9))


def _ceiling(top: float) -> float:
    """The tick at or above the largest value, so that a panel ends with a numbered line."""
    step = _step(top, 4)
    return float(np.ceil(top / step - 1e-9)) * step


def _ticks(top: float, about: int) -> list[float]:
    """Round numbers from 0 to at most `top`."""
    step = _step(top, about)
    return [round(i * step, 9) for i in range(int(top / step + 1e-9) + 1)]


def _x(share: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * share


def _axis(panel: tuple[int, int], top: float, title: str) -> str:
    """Horizontal lines with their numbers, and what they count."""
    upper, lower = panel
    lines = [f"<text class=title x=0 y={upper - 12}>{title}</text>"]
    for tick in _ticks(top, 4):
        y = lower - (lower - upper) * tick / top
        lines.append(f"<path class=grid d='M{LEFT} {y:.1f}H{WIDTH - RIGHT}'/>")
        number = f"{tick:,.0f}" if tick == int(tick) else f"{tick:g}"
        lines.append(f"<text class=end x={LEFT - 8} y={y + 4:.1f}>{number}</text>")
    return "".join(lines)


def _bars(good: np.ndarray, bad: np.ndarray) -> str:
    upper, lower = RATE
    top = _ceiling(float((good + bad).max()) or 1.0)
    wide = _x(1 / len(good)) - _x(0)
    parts = [_axis(RATE, top, "objects / hour")]
    for i, (delivered, failed) in enumerate(zip(good, bad, strict=True)):
        x, gap = _x(i / len(good)), min(2.0, wide / 5)
        base = float(lower)
        for name, value in (("good", delivered), ("bad", failed)):
            high = (lower - upper) * float(value) / top
            base -= high
            if high:
                tip = f"<title>{value:,.0f} objects/h {'delivered' if name == 'good' else 'failed'}</title>"
                box = f"x={x + gap / 2:.1f} y={base:.1f} width={wide - gap:.1f} height={high:.1f}"
                parts.append(f"<rect class={name} {box}>{tip}</rect>")
    return "".join(parts)


def _line(clock: Clock, delivered: np.ndarray) -> str:
    upper, lower = SUM
    total = np.cumsum(delivered)
    top = _ceiling(float(total[-1]) or 1.0)
    kept = np.unique(np.linspace(0, len(total) - 1, min(len(total), POINTS)).round().astype(int))
    points = " ".join(
        f"{_x(clock.at[i] / clock.seconds):.1f},{lower - (lower - upper) * total[i] / top:.1f}" for i in kept
    )
    area = f"<polygon class=area points='{_x(0):.1f},{lower} {points} {_x(1):.1f},{lower}'/>"
    return f"{_axis(SUM, top, 'delivered objects, all together')}{area}<polyline class=line points='{points}'/>"


def _time_axis(top: float, title: str) -> str:
    marks = "".join(
        f"<text class=middle x={_x(tick / top):.1f} y={SUM[1] + 18}>{tick:g}</text>" for tick in _ticks(top, 8)
    )
    return f"{marks}<text class='middle title' x={_x(0.5):.1f} y={FOOT}>{title}</text>"


def _pauses(clock: Clock) -> str:
    return "".join(
        f"<path class=pause d='M{_x(at / clock.seconds):.1f} {RATE[0]}V{SUM[1]}'><title>pause of {duration(length)}"
        f"</title></path>"
        for at, length in clock.pauses
    )


# ---- lines over one axis


@dataclass(frozen=True)
class Line:
    """points: (x, y), x ascending. look: good, other, third or limit, a class of the style. dots: each point is a measurement.

    area: filled down to the foot of its panel.
    """

    name: str
    points: Sequence[tuple[float, float]]
    look: str = "good"
    dots: bool = False
    area: bool = False


@dataclass(frozen=True)
class Panel:
    """Lines of one unit. low: where its axis starts; None: near the least value. tall: in SVG units. steep: logarithmic."""

    title: str
    lines: Sequence[Line]
    low: float | None = None
    tall: int = 150
    steep: bool = False


def panels(some: Sequence[Panel], end: float, x_label: str, marks: Sequence[tuple[float, str]] = ()) -> str:
    """Panels below each other over x from 0 to `end`. marks: x and what happened there."""
    parts, top = [], 30
    for panel in some:
        foot = top + panel.tall
        parts.append(_panel(panel, (top, foot), end))
        parts += [
            f"<path class=pause d='M{_x(at / end):.1f} {top}V{foot}'><title>{says}</title></path>" for at, says in marks
        ]
        top = foot + 44
    foot = top - 44
    for tick in _ticks(end, 8):
        parts.append(f"<text class=middle x={_x(tick / end):.1f} y={foot + 18}>{tick:,g}</text>")
    parts.append(f"<text class='middle title' x={_x(0.5):.1f} y={foot + 40}>{x_label}</text>")
    label = f"{', '.join(panel.title for panel in some)} over {x_label}"
    picture = f"<svg viewBox='0 0 {WIDTH} {foot + 52}' role=img aria-label='{label}'>{''.join(parts)}</svg>"
    several = (line for panel in some for line in panel.lines if len(panel.lines) > 1)
    names = " ".join(f"<span><span class='key {line.look}'></span> {line.name}</span>" for line in several)
    return f"<p class='note keys'>{names}</p><div class=scroll>{picture}</div>"


def _panel(panel: Panel, where: tuple[int, int], end: float) -> str:
    upper, lower = where
    ticks = _scale([y for line in panel.lines for _, y in line.points], panel.low, panel.steep)

    def height(value: float) -> float:
        low, high, at = (np.log(each) if panel.steep else each for each in (ticks[0], ticks[-1], value))
        return float(lower - (lower - upper) * (at - low) / (high - low))

    parts = [f"<text class=title x=0 y={upper - 12}>{panel.title}</text>"]
    for tick in ticks:
        parts.append(f"<path class=grid d='M{LEFT} {height(tick):.1f}H{WIDTH - RIGHT}'/>")
        parts.append(f"<text class=end x={LEFT - 8} y={height(tick) + 4:.1f}>{tick:,g}</text>")
    for line in panel.lines:
        at = [(_x(x / end), height(y)) for x, y in _thinned(line.points)]
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        if line.area and at:
            parts.append(f"<polygon class=area points='{at[0][0]:.1f},{lower} {drawn} {at[-1][0]:.1f},{lower}'/>")
        parts.append(f"<polyline class='line {line.look}' points='{drawn}'/>")
        if line.dots:
            tips = (f"<title>{line.name}, {x:,g}: {y:,.4g}</title>" for x, y in _thinned(line.points))
            parts += [
                f"<circle class={line.look} cx={x:.1f} cy={y:.1f} r=3>{tip}</circle>"
                for (x, y), tip in zip(at, tips, strict=True)
            ]
    return "".join(parts)


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    kept = np.unique(np.linspace(0, len(points) - 1, min(len(points), POINTS)).round().astype(int))
    return [points[i] for i in kept]


def _scale(values: Sequence[float], low: float | None, steep: bool) -> list[float]:
    """Round numbers from at or below the least value to at or above the largest: two at least. steep: values are positive."""
    least, most = min(values) if low is None else low, max(values)
    if steep:
        powers = range(int(np.floor(np.log10(least))), int(np.ceil(np.log10(most))) + 1)
        rounds = [float(f"{digit}e{power}") for power in powers for digit in (1, 2, 5)]
        first = max(i for i, each in enumerate(rounds) if each <= least * (1 + 1e-9))
        last = min((i for i, each in enumerate(rounds) if each >= most * (1 - 1e-9)), default=len(rounds) - 1)
        return rounds[first : max(last, first + 1) + 1]
    step = _step(max(most - least, abs(most) * 1e-3, 1e-9), 4)
    first, last = int(np.floor(least / step + 1e-9)), int(np.ceil(most / step - 1e-9))
    return [round(i * step, 15) for i in range(first, max(last, first + 1) + 1)]
