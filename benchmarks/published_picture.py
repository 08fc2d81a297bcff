"""README's picture: accuracy against mean latency, ours and rivals, one panel per network, from the published records.

All panels have the same scale, so a point of accuracy is as high in each. Bars are one standard error of the accuracy over
the test images. Colours follow the reader's light or dark scheme (Okabe and Ito's set, told apart by the colour-blind), and
every kind has a marker of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.published import Record

PANEL_WIDTH, PANEL_HEIGHT, GAP, LEFT, TOP = 246, 240, 44, 48, 66
WIDTH = LEFT + 3 * PANEL_WIDTH + 2 * GAP + 12
HEIGHT = TOP + PANEL_HEIGHT + 62
BELOW, ABOVE = 3.4, 1.4  # points of accuracy around the static model's
SLOWEST = 1.1

STYLE = """
  text { font: 12px sans-serif; fill: #222222 }
  .title { font-weight: bold; font-size: 14px }
  svg { --paper: #ffffff }
  .paper { fill: var(--paper) }
  .grid { stroke: #d9d9d9; stroke-width: 1; fill: none }
  .static { color: #222222 } .ours { color: #0072b2 } .oursint8 { color: #56a4d9 }
  .pruned { color: #d55e00 } .int8 { color: #009e73 } .exits { color: #999999 } .small { color: #cc79a7 }
  .mark { fill: currentColor; stroke: currentColor; stroke-width: 1.4 }
  .small .mark { fill: var(--paper) }
  .line { fill: none; stroke: currentColor; stroke-width: 2 }
  .bar { stroke: currentColor; stroke-width: 1.2; opacity: 0.6 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6e6e6 }
    svg { --paper: #0d1117 }
    .grid { stroke: #30363d }
    .static { color: #e6e6e6 } .ours { color: #4aa8ff } .oursint8 { color: #9ad4ff }
    .pruned { color: #ff8c42 } .int8 { color: #2fd3a3 } .exits { color: #8b949e } .small { color: #f0a6cf }
  }
"""


@dataclass(frozen=True)
class Kind:
    """Points of one kind: words, class of the style sheet, marker, and whether a line joins them."""

    words: str
    style: str
    marker: str
    joined: bool = False


KINDS = (
    Kind("ours", "ours", "circle", joined=True),
    Kind("ours in INT8", "oursint8", "diamond", joined=True),
    Kind("INT8, whole model", "int8", "square"),
    Kind("pruned", "pruned", "triangle"),
    Kind("exits by width", "exits", "cross"),
    Kind("a smaller network", "small", "circle"),
)
# Per network and kind the names of rows; what is not named was not measured, or is off the picture and said so.
PANELS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "wrn-16-4": (
        ("ours-0.3", "ours-0.35", "ours-0.5"),
        ("int8-ours-0.35",),
        ("int8-static",),
        ("pruned-0.35",),
        ("width-0.35",),
        (),
    ),
    "mobilenet-v2": (("ours-0.35", "ours-0.55"), (), (), ("pruned-0.55",), ("width-0.55",), ()),
    "fashion-methods": (
        ("ours",),
        ("int8-ours",),
        ("int8-static",),
        ("pruned", "isomorphic", "onnxsim-tuned"),
        (),
        ("replacement", "small"),
    ),
}


@dataclass(frozen=True)
class Panel:
    """Where the numbers of a network lie: left edge in pixels, and the accuracy of the static model in percent."""

    left: float
    static: float

    def x(self, latency: float) -> float:
        """Return the pixel of a latency relative to the static model."""
        return self.left + PANEL_WIDTH * latency / SLOWEST

    def y(self, accuracy: float) -> float:
        """Return the pixel of an accuracy in percent."""
        return TOP + PANEL_HEIGHT * (self.static + ABOVE - accuracy) / (BELOW + ABOVE)


def picture(records: Mapping[str, Record]) -> str:
    """Return the SVG. Raises ValueError where a point would lie outside its panel."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        "<title>Accuracy against mean latency on CIFAR-10 and Fashion-MNIST: ours and rivals on three networks</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}" rx="8"/>',
        *_legend(),
    ]
    for number, (file, kinds) in enumerate(PANELS.items()):
        rows = [[records[f"{file}/{name}"] for name in names] for names in kinds]
        parts += _panel(rows, left=LEFT + number * (PANEL_WIDTH + GAP))
    middle = LEFT + (WIDTH - LEFT) / 2
    parts.append(
        _text(middle, HEIGHT - 10, "mean latency of an image, static model = 1 (left is faster)", anchor="middle")
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _legend() -> list[str]:
    parts, x = [], float(LEFT)
    for kind in (Kind("static model", "static", "star"), *KINDS):
        parts.append(_group(kind.style, [_marker(kind.marker, x, 20)]))
        parts.append(_text(x + 11, 24, kind.words))
        x += 34 + 6.5 * len(kind.words)
    return parts


def _panel(rows: Sequence[Sequence[Record]], *, left: float) -> list[str]:
    network = rows[0][0].network
    assert network.accuracy is not None, "panels are of networks whose accuracy is known"
    panel = Panel(left, network.accuracy)
    title = ", ".join(words.partition(" (")[0] for words in (network.name, network.data))
    parts = [_text(left, TOP - 12, title, style="title"), *_grid(panel)]
    error = (network.accuracy * (100 - network.accuracy) / network.test_images) ** 0.5
    parts.append(
        _group("static", [*_bar(panel, 1.0, network.accuracy, error), _at(panel, "star", 1.0, network.accuracy)])
    )
    for kind, points in zip(KINDS, rows, strict=True):
        if points:
            parts.append(_group(kind.style, _points(panel, kind, points)))
    return parts


def _grid(panel: Panel) -> list[str]:
    right, bottom = panel.left + PANEL_WIDTH, TOP + PANEL_HEIGHT
    parts = []
    for accuracy in range(int(panel.static - BELOW) + 1, int(panel.static + ABOVE) + 1):
        y = panel.y(accuracy)
        parts.append(f'<path class="grid" d="M{panel.left:.1f} {y:.1f}H{right:.1f}"/>')
        if accuracy % 2 == 0:
            parts.append(_text(panel.left - 6, y + 4, f"{accuracy} %", anchor="end"))
    for latency in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = panel.x(latency)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{bottom}"/>')
        parts.append(_text(x, bottom + 17, f"{latency:g}", anchor="middle"))
    return parts


def _points(panel: Panel, kind: Kind, records: Sequence[Record]) -> list[str]:
    places = []
    parts = []
    for record in records:
        if record.accuracy is None or record.standard_error is None:
            raise ValueError(f"{record.key}: no accuracy to draw")
        latency = record.latency[0]
        if not (panel.static - BELOW <= record.accuracy <= panel.static + ABOVE and 0 < latency <= SLOWEST):
            raise ValueError(f"{record.key}: {record.accuracy} % at {latency} is outside its panel")
        parts += [
            *_bar(panel, latency, record.accuracy, record.standard_error),
            _at(panel, kind.marker, latency, record.accuracy),
        ]
        places.append(f"{panel.x(latency):.1f} {panel.y(record.accuracy):.1f}")
    line = [f'<path class="line" d="M{"L".join(places)}"/>'] if kind.joined and len(places) > 1 else []
    return [*line, *parts]


def _bar(panel: Panel, latency: float, accuracy: float, error: float) -> list[str]:
    """Return a bar of one standard error up and down."""
    x, high, low = panel.x(latency), panel.y(accuracy + error), panel.y(accuracy - error)
    return [f'<path class="bar" d="M{x:.1f} {high:.1f}V{low:.1f}M{x - 3:.1f} {high:.1f}h6M{x - 3:.1f} {low:.1f}h6"/>']


def _at(panel: Panel, marker: str, latency: float, accuracy: float) -> str:
    return _marker(marker, panel.x(latency), panel.y(accuracy))


def _marker(marker: str, x: float, y: float) -> str:
    shapes = {
        "diamond": "m0 -5.5l5.5 5.5l-5.5 5.5l-5.5 -5.5z",
        "square": "m-4 -4h8v8h-8z",
        "triangle": "m0 -5l5 9h-10z",
        "cross": "m-4 -4l8 8m0 -8l-8 8",
        "star": "m-5.5 0h11m-5.5 -5.5v11m-4 -9.5l8 8m0 -8l-8 8",
        "circle": "m-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
    }
    return f'<path class="mark" d="M{x:.1f} {y:.1f}{shapes[marker]}"/>'


def _group(style: str, parts: Sequence[str]) -> str:
    return f'<g class="{style}">' + "".join(parts) + "</g>"


def _text(x: float, y: float, words: str, *, anchor: str = "start", style: str = "") -> str:
    named = f' class="{style}"' if style else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{named}>{words}</text>'
