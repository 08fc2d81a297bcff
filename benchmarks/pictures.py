"""Pictures without labels: drawings of Debian's openclipart-png on backgrounds, details of them, and soft skin-coloured bands.

They are for a network that tells safe from unsafe photographs. No such photographs are needed: drawings are mostly answered
"safe" and surely, and smooth overlapping bands in the colours of skin are answered either way, often with doubt.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.drawing import background, hardness, two_colours, worn
from benchmarks.packages import debian_package

SIDE, RESIZED = 224, 256
LARGEST_SIDE = 3000  # some drawings were rendered at 10,000 pixels
DRAWINGS = "usr/share/openclipart/png"
SKIN = np.array([(255, 224, 196), (234, 192, 154), (172, 112, 71), (110, 70, 40), (255, 205, 168), (241, 184, 145)])
EDGE = 8.0  # of a band; a larger one is sharper
MAX_EXPONENT = 60.0


@dataclass(frozen=True)
class Gallery:
    """Files of drawings; without any, only bands are drawn."""

    files: tuple[Path, ...] = ()


def full_gallery() -> Gallery:
    """Return the drawings of openclipart-png; raises PackageError where they cannot be had."""
    return Gallery(tuple(drawings(debian_package("openclipart-png") / DRAWINGS)))


def drawings(root: Path) -> list[Path]:
    """Return all drawings below `root` in the order of their names; a drawing in two folders counts where it lies."""
    return sorted(path for path in root.rglob("*.png") if not path.is_symlink())


def read_drawing(path: Path) -> Image.Image:
    """Return a drawing with its transparency (RGBA); raises OSError or ValueError for a broken or an enormous file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(path) as file:
                if max(file.size) > LARGEST_SIDE:
                    raise ValueError(f"{path}: {file.size} pixels")
                return file.convert("RGBA")
        except Image.DecompressionBombError as error:
            raise ValueError(str(error)) from error


def some_drawing(rng: np.random.Generator, gallery: Gallery) -> Image.Image:
    """Return a drawing that can be read, drawn anew until one can."""
    while True:
        path = gallery.files[int(rng.integers(len(gallery.files)))]
        try:
            return read_drawing(path)
        except (OSError, ValueError):
            continue


def composed(rng: np.random.Generator, gallery: Gallery) -> Image.Image:
    """Return one to three drawings on a background [256, 256]."""
    hard = hardness(rng)
    image = background(rng, (RESIZED, RESIZED), two_colours(rng, hard)[1], hard)
    for _ in range(int(rng.choice(3, p=(0.7, 0.2, 0.1))) + 1):
        drawing = some_drawing(rng, gallery)
        side = int(RESIZED * rng.uniform(0.35, 1.0))
        drawing.thumbnail((side, side))
        place = [int(rng.integers(0, max(1, RESIZED - length + 1))) for length in drawing.size]
        image.paste(drawing, (place[0], place[1]), drawing)
    return worn(rng, image, hard, detail=25)


def detail(rng: np.random.Generator, gallery: Gallery) -> Image.Image:
    """Return a part of a drawing, enlarged to [256, 256]."""
    hard = hardness(rng)
    drawing = some_drawing(rng, gallery)
    canvas = background(rng, drawing.size, two_colours(rng, hard)[1], hard)
    canvas.paste(drawing, (0, 0), drawing)
    side = min(canvas.size) * rng.uniform(0.3, 0.9)
    left, top = rng.uniform(0, canvas.width - side), rng.uniform(0, canvas.height - side)
    box = (left, top, left + side, top + side)
    return worn(rng, canvas.resize((RESIZED, RESIZED), Image.Resampling.BILINEAR, box=box), hard, detail=25)


def bands(rng: np.random.Generator) -> Image.Image:
    """Return soft bands that lie over each other in one colour of skin [256, 256]."""
    y, x = np.mgrid[:RESIZED, :RESIZED] / RESIZED
    skin = SKIN[int(rng.integers(len(SKIN)))]
    ground = rng.integers(0, 256, 3) * rng.uniform(0.2, 1) if rng.random() < 0.4 else skin * rng.uniform(0.6, 1.1)
    pixels = np.ones((RESIZED, RESIZED, 1)) * ground
    for _ in range(int(rng.integers(3, 11))):
        (across, down), angle = rng.random(2), rng.uniform(0, np.pi)
        along = (x - across) * np.cos(angle) + (y - down) * np.sin(angle)
        aside = (y - down) * np.cos(angle) - (x - across) * np.sin(angle)
        length, width = rng.uniform(0.3, 0.8), rng.uniform(0.08, 0.35)
        far = (along / length) ** 2 + (aside / width) ** 2
        inside = 1 / (1 + np.exp(np.minimum((far - 1) * EDGE, MAX_EXPONENT)))
        light = 1 - rng.uniform(0.3, 0.6) * np.clip(far, 0, 1) ** 1.5 + 0.15 * aside / width
        pixels = pixels * (1 - inside[..., None]) + inside[..., None] * skin * light[..., None]
    return worn(rng, Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), hardness(rng), detail=25)


def picture_sample(rng: np.random.Generator, gallery: Gallery) -> tuple[Image.Image, int]:
    """Return one picture [224, 224], the middle of 256x256, and -1 for no label."""
    kind = rng.random() if gallery.files else 1.0
    image = composed(rng, gallery) if kind < 0.4 else detail(rng, gallery) if kind < 0.55 else bands(rng)
    edge = (RESIZED - SIDE) // 2
    return image.crop((edge, edge, edge + SIDE, edge + SIDE)), -1
