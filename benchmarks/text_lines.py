"""Lines of text, upright or upside down, as a text detector would cut them out: input for text direction classifiers.

Letters: B images, H = 48, W = 192, always 3 channels in RGB order.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.drawing import Font, Kit, background, covers, han_text, hardness, two_colours, worn

HEIGHT, WIDTH = 48, 192
CLASSES = ("0", "180")
PADDING = 128  # zero after the preprocessing of the classifier, which is where its authors pad
# A line of these alone may read the same, or as another line, when it is turned by 180 degrees.
TURNABLE = frozenset("bdpqnuosxzlMWNHIOSXZ01689 -:./,%°")
SYMBOLS = (" - ", ": ", ", ", " / ", " & ", "; ")


def line_text(rng: np.random.Generator, kit: Kit) -> str:
    """Return what one line says: words in some case, numbers, prices, dates, or both; never something that can be turned."""
    while True:
        kind = rng.choice(5, p=(0.5, 0.15, 0.1, 0.1, 0.15))
        words = kit.some_words(rng, int(rng.choice(5, p=(0.3, 0.3, 0.2, 0.1, 0.1))) + 1)
        number = str(rng.integers(10, 10 ** int(rng.integers(2, 7))))
        text = [
            " ".join(words),
            " ".join(words[:3]).upper(),
            f"{number[:4]}-{rng.integers(1, 13):02d}-{rng.integers(1, 29):02d}",
            f"{rng.choice(list('€$£'))} {number},{rng.integers(100):02d}",
            f"{words[0].capitalize()}{rng.choice(SYMBOLS)}{number}",
        ][kind]
        if not reads_both_ways(text):
            return text


def reads_both_ways(text: str) -> bool:
    """Return whether a line could be taken for another one that stands upright."""
    return set(text) <= TURNABLE


def text_line(rng: np.random.Generator, kit: Kit) -> Image.Image:
    """Return one upright line, cut out closely, at any size (RGB)."""
    hard = hardness(rng)
    han = bool(kit.han) and rng.random() < 0.25
    font = kit.font(rng, int(rng.integers(18, 57)), han=han)
    text = han_text(rng, int(rng.integers(2, 9))) if han else line_text(rng, kit)
    if not covers(font, text):
        text = text.encode("ascii", "replace").decode().replace("?", "e")
    ink, paper = two_colours(rng, hard)
    left, top, right, bottom = (round(v) for v in font.getbbox(text))
    height = bottom - top
    gap = [round(height * rng.uniform(-0.12 * hard, 0.3)) for _ in range(4)]  # below zero, letters are cut off
    size = (max(8, right - left + gap[0] + gap[2]), max(8, height + gap[1] + gap[3]))
    image = background(rng, size, paper, hard if rng.random() < 0.5 else 0.2)
    _write(rng, image, (gap[0] - left, gap[1] - top), (text, font), ink)
    if rng.random() < 0.5:
        image = image.rotate(rng.uniform(-5, 5) * hard, Image.Resampling.BICUBIC, expand=True, fillcolor=paper)
    return worn(rng, image, hard, detail=height)


def _write(
    rng: np.random.Generator,
    image: Image.Image,
    place: tuple[int, int],
    what: tuple[str, Font],
    ink: tuple[int, int, int],
) -> None:
    """Write (text, font) at a place, now and then with a line below it or a frame, as in forms."""
    draw = ImageDraw.Draw(image)
    draw.text(place, what[0], font=what[1], fill=ink)
    width, height = image.size
    decoration = rng.random()
    if decoration < 0.06:
        draw.line((0, height - 2, width, height - 2), fill=ink, width=1)
    elif decoration < 0.1:
        draw.rectangle((0, 0, width - 1, height - 1), outline=ink)


def turned(image: Image.Image, label: int) -> Image.Image:
    """Return the line as class `label` has it: as it is, or upside down."""
    return image.transpose(Image.Transpose.ROTATE_180) if label else image


def fitted(image: Image.Image) -> Image.Image:
    """Return the line 48 pixels high in 192 columns: padded on the right, or squeezed where it is longer."""
    width = min(WIDTH, math.ceil(HEIGHT * image.width / image.height))
    canvas = Image.new("RGB", (WIDTH, HEIGHT), (PADDING,) * 3)
    canvas.paste(image.resize((width, HEIGHT), Image.Resampling.BILINEAR), (0, 0))
    return canvas


def text_sample(rng: np.random.Generator, kit: Kit) -> tuple[Image.Image, int]:
    """Return one picture [H, W] and its label."""
    label = int(rng.integers(2))
    return fitted(turned(text_line(rng, kit), label)), label
