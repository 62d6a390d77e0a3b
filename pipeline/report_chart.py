"""Throughput over time as inline SVG: objects per hour, and objects delivered so far, over the time a run really worked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.progress import duration

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


def duration_words(seconds: float) -> str:
    """Seconds -> 3.1 s, 14 min, 2.5 h."""
    for unit, unit_s in (("s", 1.0), ("min", 60.0)):
        if seconds < 120 * unit_s:
            return f"{seconds / unit_s:.3g} {unit}"
    return f"{seconds / 3600:.3g} h"


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
