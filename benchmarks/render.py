"""Draw pictures with known labels for the networks of `benchmarks.third_party`, into .npz files as s2d-convert takes them.

    python -m benchmarks.render text     # lines of text, 48x192, upright or upside down
    python -m benchmarks.render pages    # pages, 224x224, in four orientations
    python -m benchmarks.render pictures # drawings and soft shapes, 224x224, without labels

Fonts, word lists and drawings come out of Debian packages (`apt-get update` once before; nothing is installed). Written
below --out: train.npz and test.npz, and facts.json. Picture number i depends on the seed, the part and i alone, so that a larger
set begins with the smaller one. Versions of Pillow differ in single pixels.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import PIL
from PIL import Image

from benchmarks.drawing import FONT_PACKAGES, WORD_PACKAGES, full_kit
from benchmarks.packages import BENCH
from benchmarks.pages import page_sample
from benchmarks.pictures import full_gallery, picture_sample
from benchmarks.text_lines import text_sample

PARTS = ("train", "test")
CHUNK = 100
Sample = Callable[[np.random.Generator], tuple[Image.Image, int]]


@dataclass(frozen=True)
class PictureSet:
    """How one set is drawn: `make` gets what `load` gives; `packages` are the Debian packages that it comes from."""

    load: Callable[[], Any]
    make: Callable[[np.random.Generator, Any], tuple[Image.Image, int]]
    counts: tuple[int, int]
    packages: tuple[str, ...]


SETS: Mapping[str, PictureSet] = MappingProxyType(
    {
        "text": PictureSet(full_kit, text_sample, (12_000, 4_000), FONT_PACKAGES + WORD_PACKAGES),
        "pages": PictureSet(full_kit, page_sample, (5_000, 2_000), FONT_PACKAGES + WORD_PACKAGES),
        "pictures": PictureSet(full_gallery, picture_sample, (3_000, 1_000), ("openclipart-png",)),
    }
)


def generator(seed: int, part: str, index: int) -> np.random.Generator:
    """Return the random numbers of one picture."""
    return np.random.default_rng([seed, PARTS.index(part), index])


def draw(make: Sample, seed: int, part: str, rows: range) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures uint8 [B, H, W, 3] and labels int64 [B] for these numbers."""
    made = [make(generator(seed, part, index)) for index in rows]
    images = np.stack([np.asarray(image.convert("RGB"), np.uint8) for image, _ in made])
    return images, np.array([label for _, label in made], np.int64)


def _draw_chunk(name: str, seed: int, part: str, rows: range) -> tuple[np.ndarray, np.ndarray]:
    """Draw in a process of its own, which reads the fonts once."""
    known = SETS[name]
    if name not in _LOADED:
        _LOADED[name] = known.load()
    return draw(lambda rng: known.make(rng, _LOADED[name]), seed, part, rows)


_LOADED: dict[str, Any] = {}


def write_part(name: str, part: str, count: int, args: argparse.Namespace) -> dict[str, Any]:
    """Write one .npz file and return how many pictures it has, how many of each label, and a hash of the pixels."""
    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    with ProcessPoolExecutor(args.jobs) as pool:
        made = list(pool.map(partial(_draw_chunk, name, args.seed, part), chunks))
    images, labels = (np.concatenate(arrays) for arrays in zip(*made, strict=True))
    arrays = {"images": images} if (labels < 0).any() else {"images": images, "labels": labels}
    target = args.out / name / f"{part}.npz"
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez(target, **arrays)  # type: ignore[arg-type]
    values, counts = np.unique(labels, return_counts=True)
    found = {str(value): int(number) for value, number in zip(values, counts, strict=True) if value >= 0}
    return {"pictures": count, "labels": found, "sha256": hashlib.sha256(images.data).hexdigest()}


def main(argv: Sequence[str] | None = None) -> None:
    """Draw, write, and tell what was made."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("set", choices=list(SETS))
    parser.add_argument("--train", type=int, help="pictures to train and calibrate on, in place of the usual number")
    parser.add_argument("--test", type=int, help="pictures to report on")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (%(default)s)")
    parser.add_argument("--out", type=Path, default=BENCH / "rendered", help="folder to write to (%(default)s)")
    args = parser.parse_args(argv)
    known, started = SETS[args.set], time.monotonic()
    known.load()  # fetches the packages once, before there are several processes
    counts = [given or usual for given, usual in zip((args.train, args.test), known.counts, strict=True)]
    facts: dict[str, Any] = {"set": args.set, "seed": args.seed, "pillow": PIL.__version__, "packages": known.packages}
    facts |= {part: write_part(args.set, part, count, args) for part, count in zip(PARTS, counts, strict=True)}
    facts["seconds"] = round(time.monotonic() - started)
    (args.out / args.set / "facts.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
