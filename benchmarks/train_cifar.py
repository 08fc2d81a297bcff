"""Train a static classifier for 32x32 images and export it as ONNX: what the other benchmarks convert.

    python -m benchmarks.train_cifar --net vgg16-bn --data cifar10 --out build/nets [--device cuda] [--epochs 60]

The recipe is that of `benchmarks.static_training`. Written: NET.onnx (BatchNorm folded by the exporter, dynamic batch) and
NET.json (how it was trained, accuracy on the validation images).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.nets import NETS
from benchmarks.static_training import Recipe, add_options, recipe_of, train_and_export
from s2d_convert.data.images import Dataset
from s2d_convert.data.labels import LabelSpace
from s2d_convert.data.loading import load_data
from s2d_convert.data.preprocess import make_preprocess

SIZE, CLASSES = 32, 10
USUAL = Recipe()


def parse() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--net", choices=sorted(NETS), required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of class folders")
    add_options(parser, USUAL)
    return parser.parse_args()


def main() -> None:
    """Train, export, and write down how."""
    args = parse()
    torch.manual_seed(args.seed)
    net = NETS[args.net](CLASSES)
    preprocess = make_preprocess("imagenet", size=(SIZE, SIZE), channels=3)
    whole = load_data(args.data, preprocess=preprocess, space=LabelSpace(CLASSES), seed=args.split_seed)
    some = slice(0, round(args.share * len(whole.train)))
    dataset = Dataset(whole.train.take(some), whole.calib, whole.test)
    recipe = recipe_of(args, USUAL)
    train_and_export(net, args.out / f"{args.net}.onnx", dataset, recipe, device_name=args.device)


if __name__ == "__main__":
    main()
