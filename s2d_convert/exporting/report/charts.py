"""Charts as inline SVG: no scripts, no requests, colours from the page's CSS variables. All text is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 860, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 16, 44
COLOURS = 6  # --c0 ... of the page


@dataclass(frozen=True)
class Series:
    """Named points (x, y), drawn as dots and joined by a line if `line`, by steps if `steps`.

    `notes`: the tooltip of each point.
    """

    name: str
    colour: int
    points: tuple[tuple[float, float], ...]
    notes: tuple[str, ...] = ()
    line: bool = False
    steps: bool = False
    dots: bool = True
    large: bool = False


@dataclass(frozen=True)
class _Axis:
    """A mapping from values to pixels, with ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def plot(series: Sequence[Series], *, x_name: str, y_name: str, percent: bool = False) -> str:
    """Return a chart of points over two numeric axes, without those that are not finite. percent: show y as a percentage."""
    shown = [[p for p in s.points if all(map(math.isfinite, p))] for s in series]
    points = [p for finite in shown for p in finite]
    if not points:
        return ""
    x = _axis([p[0] for p in points], LEFT, WIDTH - RIGHT)
    y = _axis([p[1] for p in points], HEIGHT - BOTTOM, TOP)
    parts = [_grid(x, y, x_name, y_name, percent=percent)]
    for s, finite in zip(series, shown, strict=True):
        pixels = [(x(a), y(b)) for a, b in finite]
        if (s.line or s.steps) and len(pixels) > 1:
            parts.append(_line(pixels, s))
        if s.dots:
            parts += _dots(pixels, s)
    return _svg(HEIGHT, "".join(parts), f"{y_name} over {x_name}") + legend(
        [(s.name, s.colour) for s in series if s.dots]
    )


def bars(rows: Sequence[tuple[str, Sequence[float]]]) -> str:
    """Return a stacked bar per row, with the row's name before it. rows: names and shares that sum to 1."""
    step, thick = 26, 16
    parts = []
    for number, (name, shares) in enumerate(rows):
        top, left = 6 + number * step, float(LEFT + 70)
        parts.append(f'<text x="{LEFT + 60}" y="{top + 12}" text-anchor="end">{escape(name)}</text>')
        for k, share in enumerate(shares):
            width = share * (WIDTH - RIGHT - LEFT - 70)
            tip = f"<title>stage {k + 1}: {100 * share:.1f} %</title>"
            parts.append(
                f'<rect x="{left:.1f}" y="{top}" width="{max(0.0, width - 1):.1f}" height="{thick}" '
                f'fill="var(--c{k % COLOURS})">{tip}</rect>'
            )
            if width > 44:
                parts.append(f'<text class="in" x="{left + 6:.1f}" y="{top + 12}">{100 * share:.0f} %</text>')
            left += width
    stages = max((len(shares) for _, shares in rows), default=0)
    names = [(f"stage {k + 1}", k % COLOURS) for k in range(stages)]
    return _svg(12 + step * len(rows), "".join(parts), "share of images per stage") + legend(names)


def legend(names: Sequence[tuple[str, int]]) -> str:
    """Return a legend. names: texts and the numbers of their colours."""
    items = (f'<span><i style="background:var(--c{colour})"></i>{escape(name)}</span>' for name, colour in names)
    return f'<p class="legend">{"".join(items)}</p>'


def _axis(values: Sequence[float], start: float, end: float) -> _Axis:
    """Return an axis that covers all values, with ticks at round numbers."""
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.05 * max(abs(high), 0.1)
    low, high = low - margin, high + margin
    rough = (high - low) / 6
    scale = 10 ** math.floor(math.log10(rough))
    step = next(n * scale for n in (1, 2, 2.5, 5, 10) if n * scale >= rough)
    first = math.ceil(low / step)
    return _Axis(low, high, start, end, tuple(n * step for n in range(first, math.floor(high / step) + 1)))


def _grid(x: _Axis, y: _Axis, x_name: str, y_name: str, *, percent: bool) -> str:
    parts = []
    for tick in y.ticks:
        text = f"{100 * tick:.5g} %" if percent else f"{tick:.4g}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{text}</text>')
    for tick in x.ticks:
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:.4g}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_name)}</text>')
    parts.append(f'<text x="{LEFT}" y="11">{escape(y_name)}</text>')
    return "".join(parts)


def _line(pixels: Sequence[tuple[float, float]], series: Series) -> str:
    if series.steps:
        pixels = [pixels[0], *(corner for (_, b), (c, d) in pairwise(pixels) for corner in ((c, b), (c, d)))]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in pixels)
    return f'<polyline points="{path}" stroke="var(--c{series.colour})"/>'


def _dots(pixels: Sequence[tuple[float, float]], series: Series) -> list[str]:
    notes = series.notes or ("",) * len(pixels)
    size = 7 if series.large else 3.5
    return [
        f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{size}" fill="var(--c{series.colour})"><title>{escape(note or series.name)}'
        "</title></circle>"
        for (a, b), note in zip(pixels, notes, strict=False)
    ]


def _svg(height: int, inside: str, label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">{inside}</svg>'
