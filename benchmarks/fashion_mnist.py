"""Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017), the original 60,000 + 10,000 images, and static models of it.

    python -m benchmarks.fashion_mnist data
    python -m benchmarks.fashion_mnist train --net resnet20 [--seed 0] [--device cuda]

The first takes the files of Debian's dataset-fashion-mnist (where it is installed, or fetched: `apt-get update` once before) and
writes train.npz and test.npz: uint8 [B, 28, 28, 1] and labels. The second trains by the recipe of
`benchmarks.static_training` on 55,000 images of train.npz (what a conversion holds out stays unseen) and reports the accuracy on
the 10,000 test images. Networks take `(pixel / 255 - 0.2860) / 0.3530`, in the words of s2d-convert
`--preprocess unit --mean 0.2860 --std 0.3530`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.idx import read_idx
from benchmarks.nets import NETS
from benchmarks.packages import BENCH, debian_package, sha256
from benchmarks.static_training import Recipe, add_options, recipe_of, train_and_export
from s2d_convert.data.images import Dataset
from s2d_convert.data.labels import LabelSpace
from s2d_convert.data.loading import load_all, load_data
from s2d_convert.data.preprocess import Preprocess, make_preprocess
from s2d_convert.data.presets import PixelOptions

PACKAGE = "dataset-fashion-mnist"
INSIDE = Path("usr/share/datasets/fashion-mnist")
DATA = BENCH / "fashion-mnist"
PARTS = {"train": "train", "test": "t10k"}
SIZE, CLASSES = 28, 10
MEAN, STD = 0.2860, 0.3530  # of the training pixels, in 0..1 units
OPTIONS = ("--preprocess", "unit", "--mean", f"{MEAN:.4f}", "--std", f"{STD:.4f}")
NAMES = (
    "resnet8",
    "resnet20",
    "wrn-16-2",
    "wrn-16-4",
    "mobilenet-v2",
    "mobilenet-v2-half",
)  # VGG halves 28 pixels too often
USUAL = Recipe(epochs=30.0)


def source() -> Path:
    """Return the folder with the idx files: the installed one, or one that was fetched."""
    installed = Path("/") / INSIDE
    return installed if installed.is_dir() else debian_package(PACKAGE) / INSIDE


def write_data(folder: Path, out: Path) -> None:
    """Write train.npz, test.npz and facts.json from the idx files in `folder`."""
    out.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {"package": PACKAGE, "options": OPTIONS}
    for part, prefix in PARTS.items():
        images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise ValueError(f"{folder}: images of shape {images.shape} and labels of shape {labels.shape}")
        np.savez(out / f"{part}.npz", images=images[..., None], labels=labels.astype(np.int64))
        facts[part] = {"images": len(images), "sha256": sha256(out / f"{part}.npz")}
    (out / "facts.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(facts))


def preprocessing() -> Preprocess:
    """Return what `OPTIONS` mean."""
    return make_preprocess("unit", size=(SIZE, SIZE), channels=1, pixels=PixelOptions(mean=(MEAN,), std=(STD,)))


def train_net(args: argparse.Namespace) -> None:
    """Train one network and export it to --out, as NET-fashion-SEED.onnx."""
    torch.manual_seed(args.seed)
    net = NETS[args.net](CLASSES, channels=1)
    preprocess = preprocessing()
    whole = load_data(args.data / "train.npz", preprocess=preprocess, space=LabelSpace(CLASSES), seed=args.split_seed)
    test = load_all(args.data / "test.npz", preprocess=preprocess, space=LabelSpace(CLASSES))
    some = slice(0, round(args.share * len(whole.train)))
    dataset = Dataset(whole.train.take(some), whole.calib, whole.test)
    target = args.out / f"{args.net}-fashion-{args.seed}.onnx"
    train_and_export(net, target, dataset, recipe_of(args, USUAL), device_name=args.device, test=test)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the data, or train a network on it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    data = verbs.add_parser("data", help="write train.npz and test.npz")
    training = verbs.add_parser("train", help="train a static model")
    training.add_argument("--net", choices=NAMES, required=True)
    for verb in (data, training):
        verb.add_argument("--data", type=Path, default=DATA, help="folder of the .npz files (%(default)s)")
    add_options(training, USUAL)
    args = parser.parse_args(argv)
    if args.verb == "data":
        write_data(source(), args.data)
    else:
        train_net(args)


if __name__ == "__main__":
    main()
