"""Training of static classifiers, the same for every data set: what the other benchmarks convert.

SGD with Nesterov momentum, a linear warm-up and a cosine, shifted and mirrored images, cross entropy, nothing else. It runs for a
number of epochs, or for `minutes`; a run that was killed goes on from its last checkpoint. The images are divided by
`split_seed` as `s2d-convert --seed` divides them, so that those on which a conversion calibrates and reports were not
seen by the static model.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from s2d_convert.base.arrays import Array, slices
from s2d_convert.conversion.prepare import torch_device
from s2d_convert.data.augment import Level
from s2d_convert.data.images import Dataset, Images
from s2d_convert.training.loop import save_state
from s2d_convert.training.settings import has_bfloat16

EVAL_BATCH = 250
CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True)
class Recipe:
    """How a static model is trained; with `minutes` it ends then, or after `epochs`, whichever comes first."""

    epochs: float = 60.0
    minutes: float | None = None
    batch: int = 128
    rate: float = 0.1
    weight_decay: float = 5e-4
    level: Level = "light"
    seed: int = 0
    split_seed: int = 0

    def progress(self, step: int, steps: int, seconds: float) -> float:
        """Return how much of the training is done, 1 at its end."""
        timed = 0.0 if self.minutes is None else seconds / (60 * self.minutes)
        return max(step / steps, timed)


def add_options(parser: argparse.ArgumentParser, usual: Recipe) -> None:
    """Add the options that every training has, with a set's usual recipe as defaults."""
    parser.add_argument("--out", type=Path, default=Path("build/nets"), help="folder to write to (%(default)s)")
    parser.add_argument("--epochs", type=float, default=usual.epochs, help="passes over the images (%(default)s)")
    parser.add_argument("--minutes", type=float, default=usual.minutes, help="end after so long, whatever the epochs")
    parser.add_argument("--share", type=float, default=1.0, help="share of the training images to use (%(default)s)")
    parser.add_argument("--batch", type=int, default=usual.batch, help="images per step (%(default)s)")
    parser.add_argument("--rate", type=float, default=usual.rate, help="highest learning rate (%(default)s)")
    parser.add_argument("--weight-decay", type=float, default=usual.weight_decay, help="(%(default)s)")
    parser.add_argument(
        "--device", default="auto", help="auto, cpu or cuda; bfloat16 where it is multiplied in hardware"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the order (%(default)s)")
    parser.add_argument("--split-seed", type=int, default=0, help="of the division of the images (%(default)s)")


def recipe_of(args: argparse.Namespace, usual: Recipe) -> Recipe:
    """Return the recipe that the command line asks for."""
    names = ("epochs", "minutes", "batch", "rate", "weight_decay", "seed", "split_seed")
    return Recipe(level=usual.level, **{name: getattr(args, name) for name in names})


def batches(images: Images, recipe: Recipe, first: int, steps: int) -> Iterator[tuple[int, Array, Array]]:
    """Yield (step, model input, labels) from step `first` on, made one step ahead in a thread."""
    assert images.labels is not None, "the data has labels"
    labels, per_epoch = images.labels, len(images) // recipe.batch

    def make(step: int) -> tuple[int, Array, Array]:
        epoch, place = divmod(step, per_epoch)
        rows = np.random.default_rng([recipe.seed, 1, epoch]).permutation(len(images))
        rows = rows[place * recipe.batch : (place + 1) * recipe.batch]
        batch = images.augmented(rows, np.random.default_rng([recipe.seed, 2, step]), level=recipe.level)
        return step, np.ascontiguousarray(batch), labels[rows]

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(make, first)
        for step in range(first, steps):
            ready = ahead.result()
            ahead = pool.submit(make, min(step + 1, steps - 1))
            yield ready


def train(
    net: nn.Module, images: Images, recipe: Recipe, *, device: torch.device, checkpoint: Path
) -> tuple[int, float]:
    """Train `net` in place; return the steps and the seconds that it took, over all sessions."""
    steps = round(recipe.epochs * (len(images) // recipe.batch))
    optimizer = make_optimizer(net, recipe)
    first, before = restore(net, optimizer, checkpoint)
    started = saved = time.monotonic()
    net.train()
    for step, batch, labels in batches(images, recipe, first, steps):
        seconds = before + time.monotonic() - started
        progress = recipe.progress(step, steps, seconds)
        if progress >= 1:
            steps = step
            break
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * schedule(progress)
        loss = train_step(net, optimizer, batch, labels, device=device)
        now = time.monotonic()
        if now - saved > CHECKPOINT_SECONDS:
            saved, seconds = now, before + now - started
            state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            save_state(checkpoint, {**state, "seconds": seconds})
            print(f"step {step + 1} of {steps}, loss {float(loss.detach()):.3f}, {seconds:.0f} s", flush=True)
    net.eval()
    return steps, before + time.monotonic() - started


def train_step(
    net: nn.Module, optimizer: torch.optim.Optimizer, batch: Array, labels: Array, *, device: torch.device
) -> torch.Tensor:
    """Do one step, in mixed precision where the device has bfloat16, and return the loss."""
    data = torch.from_numpy(batch).to(device, memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
        logits = net(data)
    loss = F.cross_entropy(logits.float(), torch.from_numpy(labels).to(device))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss


def make_optimizer(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return SGD that decays the weights, but neither biases nor norms."""
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in net.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=recipe.rate, momentum=0.9, nesterov=True)


def restore(net: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path) -> tuple[int, float]:
    """Load a checkpoint where there is one; return its step and the seconds before it."""
    if not checkpoint.exists():
        return 0, 0.0
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    net.load_state_dict(state["net"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["seconds"]


def schedule(progress: float, warmup: float = 0.1) -> float:
    """Return the share of the highest rate: a linear warm-up, then a cosine to zero."""
    if progress < warmup:
        return (progress + 1e-3) / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


@torch.no_grad()
def accuracy(net: nn.Module, images: Images, device: torch.device) -> float:
    """Return the share of images that `net` classifies as their labels say."""
    assert images.labels is not None, "the data has labels"
    net.eval()
    said = [
        net(torch.from_numpy(np.ascontiguousarray(images.batch(part))).to(device)).argmax(1).cpu().numpy()
        for part in slices(len(images), EVAL_BATCH)
    ]
    return float((np.concatenate(said) == images.labels).mean())


def export(net: nn.Module, path: Path, shape: tuple[int, int, int]) -> None:
    """Write `net` as ONNX for images of `shape` (C, H, W), with a dynamic batch."""
    with warnings.catch_warnings():
        # The classic exporter writes the plain graphs that most models in the field have.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            net.cpu().to(memory_format=torch.contiguous_format),  # type: ignore[call-overload]
            (torch.zeros(1, *shape),),
            str(path),
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "N"}, "logits": {0: "N"}},
            opset_version=17,
            dynamo=False,
        )


def count(net: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in net.parameters())


def train_and_export(
    net: nn.Module,
    target: Path,
    dataset: Dataset,
    recipe: Recipe,
    *,
    device_name: str = "auto",
    test: Images | None = None,
) -> dict[str, Any]:
    """Train `net`, write it to `target` (.onnx) with its facts beside it (.json), and return those.

    Reported are the accuracies on `dataset.calib` and, where it is given, on `test`; nothing was chosen on either.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    device = torch_device(device_name)
    checkpoint = target.with_suffix(".part.pt")
    net = net.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps, seconds = train(net, dataset.train, recipe, device=device, checkpoint=checkpoint)
    facts: dict[str, Any] = {"net": target.stem, **asdict(recipe), "device": device.type, "steps": steps}
    facts |= {"images": len(dataset.train), "validation_images": len(dataset.calib)}
    facts |= {"validation_accuracy": round(accuracy(net, dataset.calib, device), 4)}
    if test is not None:
        facts |= {"test_images": len(test), "test_accuracy": round(accuracy(net, test, device), 4)}
    facts |= {"seconds": round(seconds), "parameters": count(net)}
    export(net, target, dataset.train.preprocess.input_shape)
    target.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    checkpoint.unlink(missing_ok=True)
    print(json.dumps(facts))
    return facts
