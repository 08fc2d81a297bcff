"""Train a static classifier for 32x32 images and export it as ONNX: what the other benchmarks convert.

    python -m benchmarks.train_cifar --net vgg16-bn --data cifar10 --out build/nets [--device cuda] [--epochs 60]

The images are divided by `--split-seed` just as `s2d-convert --seed` divides them, so that the images on which a conversion
with that seed calibrates and reports were not seen by the static model. SGD with Nesterov momentum, a linear warm-up
and a cosine, shifted and mirrored images. A run that was killed goes on from its last checkpoint. Written: NET.onnx (BatchNorm
folded by the exporter, dynamic batch) and NET.json (how it was trained, accuracy on the validation images).
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.nets import NETS
from s2d_convert.base.arrays import Array, slices
from s2d_convert.conversion.prepare import torch_device
from s2d_convert.data.images import Dataset, Images
from s2d_convert.data.loading import load_data
from s2d_convert.data.preprocess import make_preprocess
from s2d_convert.training.loop import has_bfloat16, save_state

SIZE, CLASSES, EVAL_BATCH = 32, 10, 250
CHECKPOINT_SECONDS = 60.0


def batches(images: Images, args: argparse.Namespace, first: int, steps: int) -> Iterator[tuple[int, Array, Array]]:
    """(step, model input, labels) from step `first` on, made one step ahead in a thread."""
    assert images.labels is not None, "the data has labels"
    labels, per_epoch = images.labels, len(images) // args.batch

    def make(step: int) -> tuple[int, Array, Array]:
        epoch, place = divmod(step, per_epoch)
        rows = np.random.default_rng([args.seed, 1, epoch]).permutation(len(images))
        rows = rows[place * args.batch : (place + 1) * args.batch]
        batch = images.augmented(rows, np.random.default_rng([args.seed, 2, step]))
        return step, np.ascontiguousarray(batch), labels[rows]

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(make, first)
        for step in range(first, steps):
            ready = ahead.result()
            ahead = pool.submit(make, min(step + 1, steps - 1))
            yield ready


def train(net: nn.Module, dataset: Dataset, args: argparse.Namespace, device: torch.device) -> float:
    """Train `net` in place; the seconds that it took, over all sessions."""
    steps = round(args.epochs * (len(dataset.train) // args.batch))
    decayed = [p for p in net.parameters() if p.ndim > 1]
    groups = [
        {"params": decayed, "weight_decay": args.weight_decay},
        {"params": [p for p in net.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=args.rate, momentum=0.9, nesterov=True)
    checkpoint = args.out / f"{args.net}.part.pt"
    first, before = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        first, before = state["step"], state["seconds"]
    started = saved = time.monotonic()
    net.train()
    for step, batch, labels in batches(dataset.train, args, first, steps):
        for group in optimizer.param_groups:
            group["lr"] = args.rate * schedule(step / steps)
        data = torch.from_numpy(batch).to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
            logits = net(data)
        loss = F.cross_entropy(logits.float(), torch.from_numpy(labels).to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        now = time.monotonic()
        if now - saved > CHECKPOINT_SECONDS:
            state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            save_state(checkpoint, {**state, "seconds": before + now - started})
            saved = now
            print(
                f"step {step + 1} of {steps}, loss {float(loss.detach()):.3f}, {before + now - started:.0f} s",
                flush=True,
            )
    net.eval()
    return before + time.monotonic() - started


def schedule(progress: float, warmup: float = 0.1) -> float:
    """Linear warm-up, then a cosine to zero."""
    if progress < warmup:
        return (progress + 1e-3) / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


@torch.no_grad()
def accuracy(net: nn.Module, images: Images, device: torch.device) -> float:
    """The share of images that `net` classifies as their labels say."""
    assert images.labels is not None, "the data has labels"
    net.eval()
    said = [
        net(torch.from_numpy(np.ascontiguousarray(images.batch(part))).to(device)).argmax(1).cpu().numpy()
        for part in slices(len(images), EVAL_BATCH)
    ]
    return float((np.concatenate(said) == images.labels).mean())


def export(net: nn.Module, path: Path) -> None:
    """Write `net` as ONNX with a dynamic batch."""
    with warnings.catch_warnings():
        # The classic exporter writes the plain graphs that most models in the field have.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            net.cpu().to(memory_format=torch.contiguous_format),  # type: ignore[call-overload]
            (torch.zeros(1, 3, SIZE, SIZE),),
            str(path),
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "N"}, "logits": {0: "N"}},
            opset_version=17,
            dynamo=False,
        )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--net", choices=sorted(NETS), required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of class folders")
    parser.add_argument("--out", type=Path, default=Path("build/nets"), help="folder to write to (%(default)s)")
    parser.add_argument("--epochs", type=float, default=60.0, help="passes over the training images (%(default)s)")
    parser.add_argument("--share", type=float, default=1.0, help="share of the training images to use (%(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="images per step (%(default)s)")
    parser.add_argument("--rate", type=float, default=0.1, help="highest learning rate (%(default)s)")
    parser.add_argument("--weight-decay", type=float, default=5e-4, help="(%(default)s)")
    parser.add_argument(
        "--device", default="auto", help="auto, cpu or cuda; bfloat16 where it is multiplied in hardware"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the order (%(default)s)")
    parser.add_argument("--split-seed", type=int, default=0, help="of the division of the images (%(default)s)")
    return parser.parse_args()


def main() -> None:
    """Train, export, and write down how."""
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch_device(args.device)
    torch.manual_seed(args.seed)
    net = NETS[args.net](CLASSES).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    preprocess = make_preprocess("imagenet", size=(SIZE, SIZE), channels=3)
    whole = load_data(args.data, preprocess=preprocess, classes=CLASSES, seed=args.split_seed)
    some = slice(0, round(args.share * len(whole.train)))
    dataset = Dataset(whole.train.take(some), whole.calib, whole.test)
    seconds = train(net, dataset, args, device)
    reached = accuracy(net, dataset.calib, device)
    export(net, args.out / f"{args.net}.onnx")
    told = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k not in ("data", "out")}
    facts: dict[str, Any] = {**told, "images": len(dataset.train), "validation_images": len(dataset.calib)}
    facts |= {"validation_accuracy": round(reached, 4), "seconds": round(seconds), "parameters": count(net)}
    (args.out / f"{args.net}.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (args.out / f"{args.net}.part.pt").unlink(missing_ok=True)
    print(f"{args.net}: {reached:.2%} of {len(dataset.calib)} validation images are right, {seconds:.0f} s")


def count(net: nn.Module) -> int:
    """The number of parameters."""
    return sum(p.numel() for p in net.parameters())


if __name__ == "__main__":
    main()
