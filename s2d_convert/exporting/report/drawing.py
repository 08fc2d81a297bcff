"""The plan of an export as a picture: one column per layer, in the colours of the stages that compute its channels."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from s2d_convert.exporting.report.charts import COLOURS, WIDTH, legend, svg
from s2d_convert.plans.layers import Layer

LEFT, RIGHT, TOP, HIGH, GAP = 58, 10, 26, 110, 44  # of a chain's band of columns, in pixels
MOST_LAYERS = 400


def draw_plan(layers: Sequence[Layer], chains: Sequence[int], *, first: str = "") -> str:
    """Return the drawing, '' without layers. chains: the number of the chain of every stage, in order [S]. first: the name of
    the network that chain 1 is, where it is no part of the model.

    The height of a column is the share of the static layer's channels, so that what is left out stays empty.
    """
    stages = len(chains)
    shown = [layer for layer in layers[:MOST_LAYERS] if len(layer.made) == stages]
    if not shown:
        return ""
    parts, top = [], TOP
    for chain in sorted(set(chains)):
        members = [stage for stage, of in enumerate(chains) if of == chain]
        if chain == 1 and first:
            parts.append(f'<text x="{LEFT}" y="{top}">stage 1: {escape(first)}, no part of the model</text>')
            top += GAP
            continue
        parts.append(_band(shown, members, top, starts_again=chain > 1))
        top += HIGH + GAP
    names = [(f"stage {stage + 1}", stage % COLOURS) for stage in range(stages)]
    return svg(top, "".join(parts), "channels of every layer by stage") + legend(names)


def _band(layers: Sequence[Layer], members: Sequence[int], top: int, *, starts_again: bool) -> str:
    """Return the columns of one chain. members: the indices of its stages."""
    step = (WIDTH - LEFT - RIGHT) / len(layers)
    thick = step - min(2.0, 0.25 * step)
    bottom = top + HIGH
    parts = [
        f'<text x="{LEFT - 6}" y="{top + 11}" text-anchor="end">100 %</text>',
        f'<text x="{LEFT - 6}" y="{bottom}" text-anchor="end">0</text>',
        f'<text x="{LEFT}" y="{bottom + 17}">image</text>',
        f'<text x="{WIDTH - RIGHT}" y="{bottom + 17}" text-anchor="end">answer</text>',
    ]
    if starts_again:
        parts.append(f'<text x="{WIDTH / 2}" y="{top - 6}" text-anchor="middle">starts again from the image</text>')
    for number, layer in enumerate(layers):
        left, base = LEFT + number * step, float(bottom)
        counts = ", ".join(f"{layer.made[stage]} in stage {stage + 1}" for stage in members)
        columns = [f'<rect class="empty" x="{left:.1f}" y="{top}" width="{thick:.1f}" height="{HIGH}"/>']
        for stage in members:
            high = HIGH * min(1.0, layer.made[stage] / layer.channels)
            base -= high
            columns.append(
                f'<rect x="{left:.1f}" y="{base:.1f}" width="{thick:.1f}" height="{high:.1f}" '
                f'fill="var(--c{stage % COLOURS})"/>'
            )
        tip = f"<title>{escape(layer.name)}: of {layer.channels} channels {counts}</title>"
        parts.append(f"<g>{tip}{''.join(columns)}</g>")
    return "".join(parts)
