"""Train a small residual CNN on scikit-learn's handwritten digits and export it as ONNX: the start of `make demo`.

The 1,797 digits are real scans (8x8 grey levels) that come with scikit-learn; nothing is downloaded. They are enlarged
to 32x32 and divided once, by seed and class, into what the conversion may see and what nothing sees before the end.

Written into the folder given by --out:
    digits.onnx  input [N, 1, 32, 32] float32 in 0..1, output [N, 10] logits; N is dynamic
    train.npz    images float32 [B, 1, 32, 32], labels int64 [B]: training and calibration
    test.npz     the same, for the images that neither training nor calibration may see
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
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

SIZE = 32
TEST_SHARE = 0.25
MAX_SHIFT = 2


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
        """Features of the block, [B, out_channels, H / stride, W / stride]."""
        return F.relu(self.body(features) + self.shortcut(features))


def residual_net(width: int = 32) -> nn.Sequential:
    """A static classifier for [B, 1, 32, 32] images: residual blocks of `width`, 2 and 4 times `width` channels.

    The first convolution halves the map (the images are enlarged ones), so that training takes a minute on one core.
    """
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        Block(width, width, stride=1),
        Block(width, 2 * width, stride=2),
        Block(2 * width, 4 * width, stride=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, 10),
    )


def load_images(*, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images [B, 1, 32, 32] in 0..1 and labels [B], then the same for the test; classes in equal shares."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().div(16.0).unsqueeze(1)
    images = F.interpolate(images, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(digits.target).long()
    train, test = train_test_split(
        np.arange(len(labels)), test_size=TEST_SHARE, random_state=seed, stratify=digits.target
    )
    return images[train], labels[train], images[test], labels[test]


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every image moved by up to MAX_SHIFT pixels in both directions, black at the rim; same shape."""
    batch = len(images)
    padded = F.pad(images, [MAX_SHIFT] * 4)
    steps = torch.arange(SIZE)
    rows = torch.randint(0, 2 * MAX_SHIFT + 1, (batch, 1), generator=generator) + steps
    columns = torch.randint(0, 2 * MAX_SHIFT + 1, (batch, 1), generator=generator) + steps
    picked = torch.arange(batch)[:, None, None]
    return padded[picked, 0, rows[:, :, None], columns[:, None, :]].unsqueeze(1)


def train(model: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, batch: int, seed: int) -> None:
    """Trains `model` in place: AdamW, a one-cycle learning rate, cross-entropy on shifted images."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    steps = -(-len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, epochs=epochs, steps_per_epoch=steps)
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(images), generator=generator).split(batch):
            loss = F.cross_entropy(model(shifted(images[rows], generator)), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        print(f"epoch {epoch + 1:2d} of {epochs}: loss {total / len(images):.4f}", flush=True)
    model.eval()


def export(model: nn.Module, path: Path) -> None:
    """Writes `model` as ONNX with a dynamic batch axis; BatchNorm is folded into the convolutions by the exporter."""
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
    """Share of `images` that the exported file classifies as `labels` say, in onnxruntime."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits: NDArray[np.float32] = session.run(["output"], {"input": images.numpy()})[0]
    return float((logits.argmax(axis=1) == labels.numpy()).mean())


def main() -> None:
    """Trains, exports and says how good the static model is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="folder to write to (%(default)s)")
    parser.add_argument("--epochs", type=int, default=12, help="passes over the training images (%(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="images per training step (%(default)s)")
    parser.add_argument("--width", type=int, default=32, help="channels of the first stage (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the weights and the order (%(default)s)")
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    train_images, train_labels, test_images, test_labels = load_images(seed=options.seed)
    print(f"{len(train_images)} images for training and calibration, {len(test_images)} for the test, {SIZE}x{SIZE}")
    model = residual_net(options.width)
    start = time.perf_counter()
    train(model, train_images, train_labels, epochs=options.epochs, batch=options.batch, seed=options.seed)
    print(f"trained in {time.perf_counter() - start:.0f} s")

    options.out.mkdir(parents=True, exist_ok=True)
    export(model, options.out / "digits.onnx")
    np.savez_compressed(options.out / "train.npz", images=train_images.numpy(), labels=train_labels.numpy())
    np.savez_compressed(options.out / "test.npz", images=test_images.numpy(), labels=test_labels.numpy())
    reached = accuracy(options.out / "digits.onnx", test_images, test_labels)
    print(f"static model: {reached:.2%} of the test images are right ({options.out / 'digits.onnx'})")


if __name__ == "__main__":
    main()
