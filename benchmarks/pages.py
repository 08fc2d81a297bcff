"""Pages of text in four orientations: input for page orientation classifiers.

A page has headings, paragraphs, lists, tables and figures in one to three columns; a hard one has few lines, is blurred, noisy,
skewed or printed on uneven paper. Sides are 224 after the resize and crop that the classifier's authors use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.drawing import Colour, Font, Kit, background, han_text, hardness, two_colours, worn

SIDE, SHORT_SIDE = 224, 256
PAGE_WIDTH = 512
CLASSES = ("0", "90", "180", "270")
# Class k is a page turned clockwise by k quarters.
_TURNS = (Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_90)


@dataclass
class Column:
    """A column that is being filled from the top; `y` is where the next block starts."""

    draw: ImageDraw.ImageDraw
    rng: np.random.Generator
    kit: Kit
    ink: Colour
    x: int
    y: int
    width: int
    bottom: int
    em: int
    path_seed: int
    han: bool

    def font(self, scale: float = 1.0) -> Font:
        """Return the column's typeface at a multiple of its size."""
        return self.kit.font(np.random.default_rng(self.path_seed), max(7, round(self.em * scale)), han=self.han)

    def words(self, count: int) -> list[str]:
        """Return words of the column's language; Chinese ones are single characters."""
        return list(han_text(self.rng, count)) if self.han else self.kit.some_words(self.rng, count)

    def line(self, words: list[str], font: Font, *, indent: int = 0) -> list[str]:
        """Write as many words as the line holds, move down, and return the rest."""
        gap = "" if self.han else " "
        text = ""
        while words and font.getlength(text + gap + words[0]) < self.width - indent:
            text = (text + gap + words[0]) if text else words[0]
            words = words[1:]
        if not text and words:  # longer than the column
            text, words = words[0], words[1:]
        self.draw.text((self.x + indent, self.y), text, font=font, fill=self.ink)
        self.y += round(1.35 * font.size)
        return words


def paragraph(column: Column) -> None:
    """Write some ragged lines, the first indented now and then."""
    font = column.font()
    words = column.words(int(column.rng.integers(15, 90)))
    indent = column.em * int(column.rng.integers(0, 3))
    while words and column.y + font.size < column.bottom:
        words = column.line(words, font, indent=indent)
        indent = 0
    column.y += column.em


def heading(column: Column) -> None:
    """Write one or two words large."""
    column.y += column.em // 2
    column.line(column.words(int(column.rng.integers(1, 5))), column.font(column.rng.uniform(1.3, 2.4)))
    column.y += column.em // 2


def bullets(column: Column) -> None:
    """Write a list with dots or numbers."""
    font, numbered = column.font(), column.rng.random() < 0.5
    for index in range(int(column.rng.integers(2, 7))):
        if column.y + font.size > column.bottom:
            break
        column.draw.text((column.x, column.y), f"{index + 1}." if numbered else "-", font=font, fill=column.ink)
        column.line(column.words(int(column.rng.integers(2, 8))), font, indent=2 * column.em)
    column.y += column.em


def table(column: Column) -> None:
    """Write rows of a word and some numbers between thin rules."""
    font, cells = column.font(0.9), int(column.rng.integers(2, 5))
    for _ in range(int(column.rng.integers(3, 9))):
        if column.y + 2 * font.size > column.bottom:
            break
        column.draw.line((column.x, column.y, column.x + column.width, column.y), fill=column.ink)
        for cell in range(cells):
            text = str(column.rng.integers(1, 99999)) if cell else column.words(1)[0]
            column.draw.text((column.x + cell * column.width // cells, column.y + 3), text, font=font, fill=column.ink)
        column.y += round(1.6 * font.size)
    column.y += column.em


def figure(column: Column) -> None:
    """Draw a grey box, a bar chart (bars stand on the ground) or ellipses, with a caption."""
    height = int(column.width * column.rng.uniform(0.25, 0.7))
    if column.y + height + 2 * column.em > column.bottom:
        column.y = column.bottom
        return
    x, y, right, ground = column.x, column.y, column.x + column.width, column.y + height
    kind = column.rng.integers(3)
    column.draw.rectangle((x, y, right, ground), outline=column.ink, fill=_tint(column.rng) if kind == 0 else None)
    for bar in range(int(column.rng.integers(3, 9)) if kind else 0):
        step = column.width // 9
        top = ground - int(height * column.rng.uniform(0.1, 0.95))
        place = (x + bar * step + 3, top, x + (bar + 1) * step - 3, ground)
        (column.draw.rectangle if kind == 1 else column.draw.ellipse)(place, fill=_tint(column.rng))
    column.y = ground + column.em // 2
    column.line(column.words(int(column.rng.integers(2, 8))), column.font(0.85))
    column.y += column.em


def _tint(rng: np.random.Generator) -> Colour:
    red, green, blue = (int(v) for v in rng.integers(60, 230, 3))
    return red, green, blue


BLOCKS: tuple[tuple[Callable[[Column], None], float], ...] = (
    (paragraph, 0.55),
    (heading, 0.15),
    (bullets, 0.1),
    (table, 0.1),
    (figure, 0.1),
)


def page(rng: np.random.Generator, kit: Kit) -> Image.Image:
    """Return one upright page (RGB), 512 pixels wide and 0.7 to 1.5 times as high."""
    hard = hardness(rng)
    width, height = PAGE_WIDTH, round(PAGE_WIDTH * rng.uniform(0.7, 1.5))
    ink, paper = two_colours(rng, hard)
    image = background(rng, (width, height), paper, hard)
    draw = ImageDraw.Draw(image)
    columns, margin = int(rng.choice(3, p=(0.6, 0.3, 0.1))) + 1, int(width * rng.uniform(0.04, 0.13))
    em, han = round(rng.uniform(9, 20 if columns == 1 else 14)), bool(kit.han) and rng.random() < 0.3
    fill = 1 - 0.5 * hard if rng.random() < 0.5 else 1.0  # how far down a column goes
    step = (width - 2 * margin) // columns
    path_seed = int(rng.integers(2**31))
    for index in range(columns):
        column = Column(
            draw, rng, kit, ink, margin + index * step, margin, step - (em if columns > 1 else 0),
            round(margin + (height - 2 * margin) * fill), em, path_seed, han,
        )  # fmt: skip
        if index == 0 and rng.random() < 0.7:
            heading(column)
        while column.y + em < column.bottom:
            BLOCKS[int(rng.choice(len(BLOCKS), p=[share for _, share in BLOCKS]))][0](column)
    if rng.random() < 0.5:
        image = image.rotate(rng.normal() * 3 * hard, Image.Resampling.BICUBIC, fillcolor=paper)
    return worn(rng, image, hard, detail=em)


def turned(image: Image.Image, label: int) -> Image.Image:
    """Return the page as class `label` has it: turned clockwise by that many quarters."""
    return image.transpose(_TURNS[label - 1]) if label else image


def fitted(image: Image.Image) -> Image.Image:
    """Return the middle of the page [224, 224], after its shorter side was made 256 pixels long."""
    factor = SHORT_SIDE / min(image.size)
    width, height = round(image.width * factor), round(image.height * factor)
    small = image.resize((width, height), Image.Resampling.LANCZOS)
    left, top = (width - SIDE) // 2, (height - SIDE) // 2
    return small.crop((left, top, left + SIDE, top + SIDE))


def page_sample(rng: np.random.Generator, kit: Kit) -> tuple[Image.Image, int]:
    """Return one picture [224, 224] and its label."""
    label = int(rng.integers(4))
    return fitted(turned(page(rng, kit), label)), label
