"""What rendered pictures are made of: fonts, words, colours, backgrounds, and the wear of scans and cameras.

Fonts and word lists come from the Debian packages named here. Everything is drawn by Pillow from one random generator per
picture, so a picture depends on its seed, its number and the versions of Pillow and of the packages, and on nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageFont

from benchmarks.packages import debian_package

FONT_PACKAGES = (
    *("fonts-dejavu-core", "fonts-liberation", "fonts-freefont-ttf", "fonts-lato", "fonts-open-sans", "fonts-cabin"),
    *("fonts-linuxlibertine", "fonts-ebgaramond", "fonts-oldstandard", "fonts-crosextra-caladea", "fonts-crosextra-carlito"),
    *("fonts-inconsolata", "fonts-hack", "fonts-roboto-unhinted", "fonts-quicksand", "fonts-comfortaa", "fonts-lobster"),
    *("fonts-dancingscript", "fonts-wqy-microhei"),
)  # fmt: skip
WORD_PACKAGES = ("wamerican-small", "wngerman", "wfrench", "wspanish")
SUFFIXES = frozenset({".ttf", ".otf", ".ttc"})
KEYBOARDS = frozenset({"LinBiolinum_K.otf", "LinBiolinum_K.ttf"})  # pictures of keys
LATIN = "Aagk09"  # a font without these is one of symbols
HAN_ROWS = range(0xB0, 0xD8)  # of GB 2312: the 3,755 most frequent characters
# Fallback where no package can be had, for tests: what is drawn then is poorer, not different in kind.
FEW_WORDS = (
    "early",
    "exit",
    "stage",
    "channel",
    "budget",
    "latency",
    "image",
    "Kopfzeile",
    "été",
    "año",
    "model",
    "answer",
)
LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont


@dataclass(frozen=True)
class Kit:
    """Fonts by path (`None` is the one inside Pillow) and words to draw; `han` are the fonts that hold Chinese."""

    fonts: tuple[Path | None, ...]
    words: tuple[str, ...]
    han: tuple[Path, ...] = ()

    def font(self, rng: np.random.Generator, size: int, *, han: bool = False) -> Font:
        """Return one of the fonts, `size` pixels high."""
        choice: Sequence[Path | None] = self.han if han else self.fonts
        return load_font(choice[int(rng.integers(len(choice)))], size)

    def some_words(self, rng: np.random.Generator, count: int) -> list[str]:
        """Return `count` words, drawn with replacement."""
        return [self.words[i] for i in rng.integers(len(self.words), size=count)]


FALLBACK = Kit((None,), FEW_WORDS)


def full_kit() -> Kit:
    """Return the fonts and words of all packages; raises PackageError where they cannot be had."""
    paths = font_files(debian_package(name) for name in FONT_PACKAGES)
    han = tuple(path for path in paths if covers(load_font(path, 24), "中文"))
    latin = tuple(path for path in paths if path not in han and covers(load_font(path, 24), LATIN))
    words: list[str] = []
    for name in WORD_PACKAGES:
        lists = sorted(p for p in (debian_package(name) / "usr/share/dict").iterdir() if not p.is_symlink())
        words += [word for path in lists for word in path.read_text(encoding="utf-8").split() if usable(word)]
    return Kit(latin, tuple(words), han)


def font_files(folders: Iterable[Path]) -> list[Path]:
    """Return the font files below the folders, in the order of their names."""
    found = [path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES]
    kept = (path for path in found if not path.is_symlink() and path.name not in KEYBOARDS)
    return sorted(kept, key=lambda path: (path.name, str(path)))


def usable(word: str) -> bool:
    """Return whether a word of a dictionary is drawn: letters that most fonts have, and no possessive forms."""
    return 2 <= len(word) <= 14 and word.isalpha() and max(word) <= "ÿ"


@lru_cache(maxsize=4096)
def load_font(path: Path | None, size: int) -> Font:
    """Return the font of a file at a size in pixels, laid out without the optional libraries of Pillow."""
    if path is None:
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
        return font
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def covers(font: Font, text: str) -> bool:
    """Return whether the font has a glyph for every character of `text`."""
    missing = bytes(font.getmask("\U0010fffd"))
    return all(bytes(font.getmask(c)) != missing for c in set(text) - {" "})


def han_text(rng: np.random.Generator, count: int) -> str:
    """Return `count` frequent Chinese characters."""
    rows, cells = rng.integers(HAN_ROWS.start, HAN_ROWS.stop - 1, count), rng.integers(0xA1, 0xFF, count)
    return b"".join(bytes((r, c)) for r, c in zip(rows.tolist(), cells.tolist(), strict=True)).decode("gb2312")


def hardness(rng: np.random.Generator) -> float:
    """Return how worn a picture is, 0 to 1: half of them below 0.13, a tenth above 0.73."""
    return float(rng.random() ** 3)


def two_colours(rng: np.random.Generator, hard: float) -> tuple[Colour, Colour]:
    """Return ink and paper; mostly dark on light, and closer to each other the harder the picture is."""
    white = np.clip(rng.integers(200, 256) + rng.integers(-12, 13, 3), 0, 255)
    paper = white if rng.random() < 0.7 else rng.integers(0, 256, 3)
    ink = rng.integers(0, 256, 3) if rng.random() < 0.3 else rng.integers(0, 80, 1).repeat(3)
    wanted = 160 - 100 * hard
    side = -1 if paper @ LUMINANCE > 127 else 1
    lacking = wanted - side * ((ink - paper) @ LUMINANCE)
    if lacking > 0:
        ink = np.clip(ink + side * lacking, 0, 255)
    return _colour(ink), _colour(paper)


def _colour(values: NDArray[np.generic]) -> Colour:
    red, green, blue = (int(v) for v in values)
    return red, green, blue


def background(rng: np.random.Generator, size: tuple[int, int], colour: Colour, uneven: float) -> Image.Image:
    """Return paper of size (W, H): `colour` with light from one side and soft stains, stronger with `uneven` (0 to 1)."""
    coarse = rng.normal(0, 1, (4, 4))
    slope = np.linspace(-1, 1, 4)
    shade = 45 * uneven * (coarse * 0.5 + rng.normal() * slope[:, None] + rng.normal() * slope[None, :])
    light = np.asarray(Image.fromarray(shade.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
    pixels = np.clip(np.asarray(colour, np.float32) + light[..., None], 0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


def worn(rng: np.random.Generator, image: Image.Image, hard: float, *, detail: float) -> Image.Image:
    """Return the picture after a camera: out of focus, at a lower resolution, noisy; nothing of it at `hard` 0.

    `detail` is the size in pixels of what must be read, such as the height of the letters.
    """
    width, height = image.size
    if rng.random() < 0.6:
        image = image.filter(ImageFilter.GaussianBlur(hard * rng.uniform(0, 0.11) * detail))
    if rng.random() < 0.4:
        factor = 1 + hard * rng.uniform(0, 0.16) * detail
        small = (max(4, round(width / factor)), max(4, round(height / factor)))
        image = image.resize(small, Image.Resampling.BILINEAR).resize((width, height), Image.Resampling.BILINEAR)
    spread = hard * rng.uniform(0, 35)
    noise = rng.standard_normal((height, width, 3 if rng.random() < 0.5 else 1), dtype=np.float32) * spread
    pixels = np.clip(np.asarray(image, np.float32) + noise, 0, 255)
    return Image.fromarray(pixels.astype(np.uint8))
