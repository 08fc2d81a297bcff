"""Train a small residual CNN on handwritten digits in clutter and export it as ONNX: the start of `make demo`.

The 1,797 digits are real scans (8x8 grey levels) that come with scikit-learn; nothing is downloaded. They are divided once, by
seed and class, among the network, the conversion and a test at the end. Images of 32x32 are composed of them: a
digit of some size somewhere, pieces of other digits around it, a bar that hides a part of it, noise. How much of this there is
varies from image to image, so that some are easy and some are hard.

Written into the folder given by --out:
    digits.onnx  input [N, 1, 32, 32] float32 in 0..1, output [N, 10] logits; N is dynamic
    train.npz    images uint8 [B, 32, 32, 1], labels int64 [B]: for the conversion; the network has not seen their digits
    test.npz     the same, of digits that neither the network nor the conversion has seen
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

SIZE = 32
NETWORK_SHARE = 0.6  # of the digits
SMALLEST, LARGEST = 13, 30  # side of a digit in pixels
MOST_PIECES = 6  # of other digits, in the hardest image
Pixels = NDArray[np.float32]


class Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm beside a shortcut; the first one may halve the map."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the block, [B, out_channels, H / stride, W / stride]."""
        return F.relu(self.body(features) + self.shortcut(features))


def residual_net(width: int = 32) -> nn.Sequential:
    """Return a static classifier for [B, 1, 32, 32] images: residual blocks of `width`, 2 and 4 times `width` channels.

    Maps become small early, so that training takes half a minute on one core.
    """
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        Block(width, width, stride=2),
        Block(width, 2 * width, stride=2),
        Block(2 * width, 2 * width, stride=1),
        Block(2 * width, 4 * width, stride=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, 10),
    )


class Composer:
    """Composes images of some of the digits.

    digits: float32 [D, 8, 8] in 0..1; labels: int64 [D].
    """

    def __init__(self, digits: Pixels, labels: NDArray[np.int64], rng: np.random.Generator) -> None:
        self.digits, self.labels, self.rng = digits, labels, rng

    def images(self, count: int) -> tuple[Tensor, Tensor]:
        """Return `count` images [B, 1, 32, 32] in 0..1, of 256 grey levels, and the labels [B] of their digits."""
        rows = self.rng.integers(0, len(self.digits), count)
        hard = self.rng.uniform(0.0, 1.0, count) ** 2  # more easy images than hard ones
        pixels = np.stack([self._image(self.digits[row], float(h)) for row, h in zip(rows, hard, strict=True)])
        return torch.from_numpy(pixels[:, None]), torch.from_numpy(self.labels[rows])

    def _image(self, digit: Pixels, hard: float) -> Pixels:
        """Return one image [32, 32]; hard: 0 for a large clean digit to 1 for a small one in clutter, partly hidden."""
        rng = self.rng
        canvas = np.zeros((SIZE, SIZE), np.float32)
        for _ in range(round(hard * MOST_PIECES * rng.uniform(0.5, 1.0))):
            self._add_piece(canvas, hard)
        side = round(LARGEST - hard * (LARGEST - SMALLEST) * rng.uniform(0.5, 1.0))
        top, left = rng.integers(0, SIZE - side + 1, 2)
        area = canvas[top : top + side, left : left + side]
        np.maximum(area, enlarged(digit, side) * rng.uniform(1 - 0.3 * hard, 1.0), out=area)
        if rng.uniform() < hard:
            hide(area, rng)
        noisy = canvas + rng.normal(0, 0.02 + 0.1 * hard, canvas.shape)
        return (255 * noisy.clip(0, 1)).round().astype(np.float32) / np.float32(255)

    def _add_piece(self, canvas: Pixels, hard: float) -> None:
        """Put a quarter of another digit somewhere."""
        rng = self.rng
        top, left = rng.integers(0, 5, 2)
        piece = self.digits[rng.integers(len(self.digits))][top : top + 4, left : left + 4]
        side = int(rng.integers(6, 12))
        top, left = rng.integers(0, SIZE - side + 1, 2)
        area = canvas[top : top + side, left : left + side]
        np.maximum(area, enlarged(piece, side) * (0.4 + 0.5 * hard), out=area)


def enlarged(pixels: Pixels, side: int) -> Pixels:
    """Return the picture with this side, bilinear."""
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR))


def hide(area: Pixels, rng: np.random.Generator) -> None:
    """Draw a grey bar over a quarter of the area, upright or lying."""
    side = len(area)
    thick = max(2, round(side * rng.uniform(0.12, 0.25)))
    start = int(rng.integers(0, side - thick + 1))
    bar = area if rng.uniform() < 0.5 else area.T
    bar[start : start + thick] = rng.uniform(0.2, 0.8)


def composers(*, seed: int) -> list[Composer]:
    """Return composers of the digits for the network, for the conversion and for the test; classes in equal shares."""
    scans = load_digits()
    digits, labels = (scans.images / 16.0).astype(np.float32), scans.target.astype(np.int64)
    network, others = train_test_split(
        np.arange(len(digits)), train_size=NETWORK_SHARE, random_state=seed, stratify=labels
    )
    conversion, test = train_test_split(others, test_size=0.5, random_state=seed, stratify=labels[others])
    return [
        Composer(digits[rows], labels[rows], np.random.default_rng([seed, number]))
        for number, rows in enumerate((network, conversion, test))
    ]


def train(model: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, batch: int, seed: int) -> None:
    """Train `model` in place: AdamW, a one-cycle learning rate, cross-entropy."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    steps = -(-len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, epochs=epochs, steps_per_epoch=steps)
    model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]  # twice as fast on a CPU
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(images), generator=generator).split(batch):
            loss = F.cross_entropy(model(images[rows].contiguous(memory_format=torch.channels_last)), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        print(f"epoch {epoch + 1} of {epochs}: error {total / len(images):.3f}", flush=True)
    model.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]


def export(model: nn.Module, path: Path) -> None:
    """Write `model` as ONNX with a dynamic batch axis; BatchNorm is folded into the convolutions by the exporter."""
    with warnings.catch_warnings():
        # torch points at its newer exporter; this one writes the plain graphs that most models in the field have.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            model,
            (torch.zeros(1, 1, SIZE, SIZE),),
            path,
            input_names=["input"],
            output_names=["output"],
            dynamic_axes={"input": {0: "N"}, "output": {0: "N"}},
            opset_version=17,
            dynamo=False,
        )


def accuracy(path: Path, images: Tensor, labels: Tensor) -> float:
    """Return the share of `images` that the exported file classifies as `labels` say, in onnxruntime."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits: NDArray[np.float32] = session.run(["output"], {"input": images.numpy()})[0]
    return float((logits.argmax(axis=1) == labels.numpy()).mean())


def main() -> None:
    """Compose images, train, export, and print the accuracy of the static model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="folder to write to (%(default)s)")
    parser.add_argument("--images", type=int, default=16000, help="images to train on (%(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="passes over the training images (%(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="images per training step (%(default)s)")
    parser.add_argument("--width", type=int, default=32, help="channels of the first stage (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the digits, the weights and the order (%(default)s)")
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    start = time.perf_counter()
    network, conversion, test = composers(seed=options.seed)
    images, labels = network.images(options.images)
    print(f"{len(images)} images composed of {len(network.digits)} digits in {time.perf_counter() - start:.0f} s")
    model = residual_net(options.width)
    start = time.perf_counter()
    train(model, images, labels, epochs=options.epochs, batch=options.batch, seed=options.seed)
    print(f"trained in {time.perf_counter() - start:.0f} s")

    options.out.mkdir(parents=True, exist_ok=True)
    export(model, options.out / "digits.onnx")
    for name, composer, count in (("train", conversion, 8000), ("test", test, 2000)):
        pixels, classes = composer.images(count)
        levels = (255 * pixels).round().to(torch.uint8).permute(0, 2, 3, 1)
        np.savez_compressed(options.out / f"{name}.npz", images=levels.numpy(), labels=classes.numpy())
    reached = accuracy(options.out / "digits.onnx", pixels, classes)
    print(
        f"static model: {reached:.2%} of {len(pixels)} images of other digits are right ({options.out / 'digits.onnx'})"
    )


if __name__ == "__main__":
    main()
