"""Charts as inline SVG: no scripts, no requests, colours from the page's CSS variables. All text is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

# A telephone shows a picture at two thirds of its size, a desktop at a little more than its size; letters suit both.
WIDTH, HEIGHT = 520, 320
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 24, 48
BAR, THICK, NAME = 28, 18, 92  # of a row of bars: its height, the bar's, and the room for its name
COLOURS = 6  # --c0 ... of the page
MOST_LETTERS = 11  # of a row's name


@dataclass(frozen=True)
class Series:
    """Named points (x, y), drawn as dots and joined by a line if `line`, by steps if `steps`.

    `notes`: the tooltip of each point; `errors`: its standard error in y, drawn as a bar of that length both ways.
    """

    name: str
    colour: int
    points: tuple[tuple[float, float], ...]
    notes: tuple[str, ...] = ()
    errors: tuple[float, ...] = ()
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
    errors = [_errors(s, (0.0, 1.0) if percent else (-math.inf, math.inf)) for s in series]
    if not points:
        return ""
    x = _axis([p[0] for p in points], LEFT, WIDTH - RIGHT)
    ends = [end for low_high in errors for _, *two in low_high for end in two]
    y = _axis([*(p[1] for p in points), *ends], HEIGHT - BOTTOM, TOP)
    parts = [_grid(x, y, x_name, y_name, percent=percent)]
    for s, finite, around in zip(series, shown, errors, strict=True):
        pixels = [(x(a), y(b)) for a, b in finite]
        if (s.line or s.steps) and len(pixels) > 1:
            parts.append(_line(pixels, s))
        parts += [_error(x(a), y(low), y(high), s.colour) for a, low, high in around]
        if s.dots:
            parts += _dots(pixels, s)
    return svg(HEIGHT, "".join(parts), f"{y_name} over {x_name}") + legend(
        [(s.name, s.colour) for s in series if s.dots]
    )


def _errors(series: Series, limits: tuple[float, float]) -> list[tuple[float, float, float]]:
    """Return x and both ends in y of the error bars of a series, cut to the limits."""
    least, most = limits
    pairs = zip(series.points, series.errors, strict=False)
    known = [(a, b, error) for (a, b), error in pairs if all(map(math.isfinite, (a, b, error))) and error > 0]
    return [(a, max(least, b - error), min(most, b + error)) for a, b, error in known]


def _error(x: float, low: float, high: float, colour: int) -> str:
    stroke = f'stroke="var(--c{colour})"'
    ends = "".join(f'<line x1="{x - 4:.1f}" x2="{x + 4:.1f}" y1="{y:.1f}" y2="{y:.1f}" {stroke}/>' for y in (low, high))
    return f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" {stroke}/>{ends}'


def bars(rows: Sequence[tuple[str, Sequence[float]]]) -> str:
    """Return a stacked bar per row, with the row's name before it. rows: names and shares that sum to 1."""
    parts = []
    for number, (name, shares) in enumerate(rows):
        top, left = 6 + number * BAR, float(NAME + 8)
        parts.append(_name(name, top))
        for k, share in enumerate(shares):
            width = share * (WIDTH - RIGHT - NAME - 8)
            tip = f"<title>stage {k + 1}: {100 * share:.1f} %</title>"
            parts.append(
                f'<rect x="{left:.1f}" y="{top}" width="{max(0.0, width - 1):.1f}" height="{THICK}" '
                f'fill="var(--c{k % COLOURS})">{tip}</rect>'
            )
            if width > 52:
                parts.append(f'<text class="in" x="{left + 6:.1f}" y="{top + 14}">{100 * share:.0f} %</text>')
            left += width
    stages = max((len(shares) for _, shares in rows), default=0)
    names = [(f"stage {k + 1}", k % COLOURS) for k in range(stages)]
    return svg(12 + BAR * len(rows), "".join(parts), "share of images per stage") + legend(names)


def losses(rows: Sequence[tuple[str, float, float]]) -> str:
    """Return a bar per row from zero to a loss, with its standard error. rows: names, losses and errors, as shares."""
    rows = [row for row in rows if math.isfinite(row[1]) and math.isfinite(row[2])]
    if not rows:
        return ""
    ends = [end for _, loss, error in rows for end in (loss - error, loss + error, 0.0)]
    x, height = _axis(ends, NAME + 8, WIDTH - RIGHT), 12 + BAR * len(rows)
    parts = []
    for tick in x.ticks:
        kind = "axis" if abs(tick) < 1e-12 else "grid"
        parts.append(f'<line class="{kind}" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="2" y2="{height}"/>')
        text = f'<text x="{x(tick):.1f}" y="{height + 18}" text-anchor="middle">{100 * tick:.4g}</text>'
        parts.append(text)
    for number, (name, loss, error) in enumerate(rows):
        top, low, high = 6 + number * BAR, x(loss - error), x(loss + error)
        left, width, middle = min(x(0), x(loss)), abs(x(loss) - x(0)), top + THICK / 2
        tip = f"<title>{escape(name)}: {100 * loss:.2f} ± {100 * error:.2f} points</title>"
        parts.append(_name(name, top))
        colour = "var(--c5)" if loss > 0 else "var(--c2)"
        parts.append(
            f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{THICK}" fill="{colour}">{tip}</rect>'
            f'<line class="axis" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>'
        )
    return svg(height + 26, "".join(parts), "points lost by class")


def _name(name: str, top: float) -> str:
    """Return the name of a row of bars, cut where it is too long for its place."""
    short = name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 1]}…"
    return f'<text x="{NAME}" y="{top + 14}" text-anchor="end"><title>{escape(name)}</title>{escape(short)}</text>'


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
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 19}" text-anchor="middle">{tick:.4g}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_name)}</text>')
    parts.append(f'<text x="4" y="14">{escape(y_name)}</text>')
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


def svg(height: int, inside: str, label: str) -> str:
    """Return a picture of WIDTH pixels that fills the width of its place. label: for those who cannot see it."""
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">{inside}</svg>'
