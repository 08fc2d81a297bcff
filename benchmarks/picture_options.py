"""The options that say how pictures become model input, spelled as of s2d-convert, for benchmarks that convert."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any


def add_picture_options(parser: argparse._ActionsContainer) -> None:
    """Add --preprocess, --mean, --std, --size and --no-flip."""
    parser.add_argument("--no-flip", action="store_true", help="do not mirror training images")
    parser.add_argument("--preprocess", help="a preset, as of s2d-convert")
    parser.add_argument("--mean", type=numbers, help="per channel in 0..1 units, as of s2d-convert")
    parser.add_argument("--std", type=numbers, help="per channel in 0..1 units, as of s2d-convert")
    parser.add_argument("--size", type=height_and_width, help="HxW, for a model whose input size is dynamic")


def picture_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return them as fields of ConvertOptions."""
    named = {name: getattr(args, name) for name in ("preprocess", "mean", "std", "size")}
    return {**named, "flip": not args.no_flip}


def picture_words(fields: Mapping[str, Any]) -> list[str]:
    """Return what `picture_options` returned in the words of the command line."""
    words = [] if fields["size"] is None else ["--size", "{}x{}".format(*fields["size"])]
    words += [] if fields["preprocess"] is None else ["--preprocess", fields["preprocess"]]
    for name in ("mean", "std"):
        words += [] if fields[name] is None else [f"--{name}", ",".join(f"{v:.9g}" for v in fields[name])]
    return words if fields["flip"] else [*words, "--no-flip"]


def numbers(text: str) -> tuple[float, ...]:
    """Return the numbers of a list with commas."""
    return tuple(float(part) for part in text.split(","))


def height_and_width(text: str) -> tuple[int, int]:
    """Return the two numbers of HxW."""
    height, width = text.split("x")
    return int(height), int(width)
