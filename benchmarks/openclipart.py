"""Drawings by subject from Debian's openclipart-png, at 224 pixels, and static models that are trained on them from scratch.

    python -m benchmarks.openclipart data
    python -m benchmarks.openclipart train --net mobilenet-v2 --size 160 --minutes 45

The first writes class folders in train/, val/ and test/. A subject is a folder of the package with at least --split drawings of
its own; what is left of a top folder is one subject together if it has --least. Drawings with no side of 224 pixels are left out
(nothing is enlarged), so are copies and what is nearly white on white; a series (`lemon`, `lemon_bw`, `lemon_02`) stays in one
part. The second trains a MobileNetV2 or a ResNet-18 with the stem and strides of its paper by the recipe of
`benchmarks.static_training`. Pixels are treated as for ImageNet, which is what s2d-convert does without options.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np
import torch
from PIL import Image

from benchmarks.nets import LARGE_NETS
from benchmarks.packages import BENCH, debian_package
from benchmarks.pictures import DRAWINGS, drawings, read_drawing
from benchmarks.static_training import Recipe, add_options, recipe_of, train_and_export
from s2d_convert.data.images import Dataset
from s2d_convert.data.labels import LabelSpace
from s2d_convert.data.loading import load_data
from s2d_convert.data.preprocess import make_preprocess

DATA = BENCH / "openclipart"
SIDE = 224
SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}
NO_SUBJECTS = frozenset({"unsorted", "special", "logos"})
COLOURS = ("black", "white", "red", "green", "blue", "yellow", "orange", "purple", "brown", "pink", "grey", "gray")
VARIANTS = frozenset({*COLOURS, *"abcdrv", "bw", "simple"})
FAINTEST = 4.0  # standard deviation of the pixels below which a drawing is taken for a blank
USUAL = Recipe(epochs=80.0, batch=64, rate=0.05, level="strong")


def subjects(places: Iterable[PurePath], *, split: int, least: int) -> dict[PurePath, str]:
    """Return the subject of every drawing that has one, by its place below the package's folder.

    A subfolder of the first level is a subject when it has `split` drawings, the rest of a top folder when it has `least`.
    """
    kept = [place for place in places if len(place.parts) > 1 and place.parts[0] not in NO_SUBJECTS]
    inner = Counter(place.parts[:2] for place in kept if len(place.parts) > 2)
    names = {
        place: "-".join(place.parts[:2]) if inner[place.parts[:2]] >= split and len(place.parts) > 2 else place.parts[0]
        for place in kept
    }
    sizes = Counter(names.values())
    return {place: name for place, name in names.items() if sizes[name] >= least}


def series(name: str) -> str:
    """Return what the variants of a drawing share in their file names: no numbers, colours, or marks of black and white."""
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word and word not in VARIANTS]
    return "_".join(words) or name


def part_of(subject: str, name: str, seed: int) -> str:
    """Return the part that a drawing belongs to: the same for a whole series, whatever else there is."""
    digest = hashlib.sha256(f"{seed} {subject} {series(name)}".encode()).digest()
    drawn, limit = int.from_bytes(digest[:8], "big") / 2**64, 0.0
    for part, share in SHARES.items():
        limit += share
        if drawn < limit:
            return part
    return part


def flattened(drawing: Image.Image) -> Image.Image:
    """Return a drawing (RGBA) on white [224, 224], its longer side made 224 pixels long."""
    factor = SIDE / max(drawing.size)
    width, height = (max(1, round(length * factor)) for length in drawing.size)
    small = drawing.resize((width, height), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (SIDE, SIDE), "white")
    canvas.paste(small, ((SIDE - width) // 2, (SIDE - height) // 2), small)
    return canvas


def large_drawings(root: Path) -> dict[PurePath, Image.Image]:
    """Return the drawings below `root` that are large enough, flattened, by their places; of copies only the first."""
    found: dict[PurePath, Image.Image] = {}
    seen: set[bytes] = set()
    for path in drawings(root):
        try:
            drawing = read_drawing(path)
        except (OSError, ValueError):
            continue
        if max(drawing.size) < SIDE:
            continue
        image = flattened(drawing)
        digest = hashlib.sha256(image.tobytes()).digest()
        if digest not in seen and np.asarray(image).std() >= FAINTEST:
            seen.add(digest)
            found[path.relative_to(root)] = image
    return found


def write_data(images: Mapping[PurePath, Image.Image], args: argparse.Namespace) -> dict[str, dict[str, int]]:
    """Write the class folders of every part and return how many drawings are in each, by part and subject."""
    found = subjects(images, split=args.split, least=args.least)
    chosen: Counter[str] = Counter()
    counts: dict[str, dict[str, int]] = {part: dict.fromkeys(sorted(set(found.values())), 0) for part in SHARES}
    for place in sorted(found, key=lambda p: hashlib.sha256(f"{args.seed} {p}".encode()).digest()):
        subject = found[place]
        if chosen[subject] == args.most:
            continue
        chosen[subject] += 1
        part = part_of(subject, place.stem, args.seed)
        target = args.data / part / subject / ("-".join(place.parts[1:-1]) + f"-{place.stem}.png").lstrip("-")
        target.parent.mkdir(parents=True, exist_ok=True)
        images[place].save(target)
        counts[part][subject] += 1
    return counts


def train_net(args: argparse.Namespace) -> None:
    """Train one network and export it to --out, as NET-openclipart-SIZE-SEED.onnx."""
    torch.manual_seed(args.seed)
    names = sorted(path.name for path in (args.data / "train").iterdir())
    preprocess = make_preprocess("imagenet", size=(args.size, args.size), channels=3)
    whole = load_data(args.data, preprocess=preprocess, space=LabelSpace(len(names)), seed=args.split_seed)
    some = slice(0, round(args.share * len(whole.train)))
    dataset = Dataset(whole.train.take(some), whole.calib, whole.test)
    net = LARGE_NETS[args.net](len(names))
    target = args.out / f"{args.net}-openclipart-{args.size}-{args.seed}.onnx"
    train_and_export(net, target, dataset, recipe_of(args, USUAL), device_name=args.device, test=dataset.test)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the data, or train a network on it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    data = verbs.add_parser("data", help="write train/, val/ and test/")
    data.add_argument("--split", type=int, default=100, help="drawings that make a subfolder a subject (%(default)s)")
    data.add_argument("--least", type=int, default=80, help="drawings that a subject has at least (%(default)s)")
    data.add_argument("--most", type=int, default=400, help="drawings that are taken of a subject (%(default)s)")
    data.add_argument("--seed", type=int, default=0, help="of the division (%(default)s)")
    training = verbs.add_parser("train", help="train a static model")
    training.add_argument("--net", choices=sorted(LARGE_NETS), required=True)
    training.add_argument("--size", type=int, default=SIDE, help="side of the images in pixels (%(default)s)")
    for verb in (data, training):
        verb.add_argument("--data", type=Path, default=DATA, help="folder of the class folders (%(default)s)")
    add_options(training, USUAL)
    args = parser.parse_args(argv)
    if args.verb == "train":
        train_net(args)
        return
    counts = write_data(large_drawings(debian_package("openclipart-png") / DRAWINGS), args)
    (args.data.parent / f"{args.data.name}.json").write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
