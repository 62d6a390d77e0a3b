"""Numbers over numbers as lines: SVG by hand, for pages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 620, 300
LEFT, RIGHT, TOP, FOOT = 52, 112, 30, 250  # the field of the lines; right of it stand their names
MARKS = 9  # places on the x axis that can all be named


@dataclass(frozen=True)
class Plot:
    """Lines. series: what a line is called -> its points (x, y), x ascending; four lines at most."""

    series: Mapping[str, Sequence[tuple[float, float]]]
    x_label: str
    y_label: str
    caption: str = ""


def svg(plot: Plot) -> str:
    """The picture as an element of HTML, in the colours of its page. Raises ValueError where there is nothing to draw."""
    points = [point for line in plot.series.values() for point in line]
    if not points or len(plot.series) > 4:
        raise ValueError(f"a plot of {len(plot.series)} lines and {len(points)} points")
    xs = sorted({x for x, _ in points})
    marks = xs if len(xs) <= MARKS else [x for x in _ticks(xs[0], xs[-1]) if xs[0] <= x <= xs[-1]]
    ticks = list(_ticks(min(y for _, y in points), max(y for _, y in points)))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - xs[0]) / (xs[-1] - xs[0]) if len(xs) > 1 else 0.5
        up = (y - ticks[0]) / (ticks[-1] - ticks[0])
        return LEFT + 10 + (WIDTH - LEFT - RIGHT - 20) * across, FOOT - (FOOT - TOP) * up

    parts = [f"<text x=0 y=14>{escape(plot.y_label)}</text>"]
    for tick in ticks:
        y = place(xs[0], tick)[1]
        parts.append(f"<path class=grid d='M{LEFT} {y:.1f}H{WIDTH - RIGHT}'/>")
        parts.append(f"<text class=end x={LEFT - 8} y={y + 4:.1f}>{tick:g}</text>")
    for x in marks:
        parts.append(f"<text class=middle x={place(x, 0)[0]:.1f} y={FOOT + 18}>{x:g}</text>")
    parts.append(f"<text class=middle x={(LEFT + WIDTH - RIGHT) / 2} y={FOOT + 38}>{escape(plot.x_label)}</text>")
    names = _apart({name: place(*line[-1])[1] for name, line in plot.series.items()})
    for number, (name, line) in enumerate(plot.series.items()):
        at = [place(*point) for point in line]
        dots = "".join(
            f"<circle cx={x:.1f} cy={y:.1f} r=3><title>{escape(name)}, {point[0]:g}: {point[1]:.2f}</title></circle>"
            for (x, y), point in zip(at, line, strict=True)
        )
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        key = f"<text class=key x={WIDTH - RIGHT + 6} y={names[name] + 4:.1f}>{escape(name)}</text>"
        parts.append(f"<g class=series{number}><polyline points='{drawn}'/>{dots}{key}</g>")
    label = escape(f"{plot.y_label} over {plot.x_label}")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role=img aria-label="{label}">{"".join(parts)}</svg>'


def _ticks(low: float, high: float) -> Iterator[float]:
    """Round numbers from at or below the least to at or above the largest value: two at least."""
    raw = (high - low) / 5 or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first = int(low // step)
    last = max(int(-(-high // step)), first + 1)
    for number in range(first, last + 1):
        yield round(number * step, 9)


def _apart(places: dict[str, float], least: float = 15) -> dict[str, float]:
    """Names beside the ends of their lines, moved down where they would cover each other."""
    made: dict[str, float] = {}
    for name in sorted(places, key=lambda one: places[one]):
        made[name] = max(places[name], max(made.values(), default=-least) + least)
    return made
