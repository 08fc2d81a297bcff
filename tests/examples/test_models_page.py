"""docs/models.md, block by block: each makes `model.onnx` of a small model of its kind, which is then split and compared with
onnxruntime on the file as it is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from environments import BUILD, beside, environment
from helpers import assert_close, open_session
from onnx import TensorProto, helper
from patterns.base import ending
from s2d_runtime import Dispatcher

from s2d_convert.errors import ModelError
from s2d_convert.frontend import load_graph
from s2d_convert.workflows.split_model import SplitOptions, split_model

PAGE = Path(__file__).parent.parent.parent / "docs" / "models.md"
SUPPORT = Path(__file__).parent.parent / "support"
RUN_S = 600
KIND = "models"
TENSORFLOW = ("tensorflow-cpu==2.21.0", "keras==3.15.1", "tf2onnx==1.17.0", "onnxruntime==1.32.0")
PADDLE = ("paddlepaddle==3.3.1", "paddle2onnx==2.1.0", "onnxruntime==1.32.0")
TRANSFORMERS = ("transformers==4.57.6", "requests")
OPTIMUM = ("optimum==2.3.0", "optimum-onnx==0.1.0")

NET = """
import torch
from torch import nn

def make_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=4), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )
"""
CHECKPOINT = 'import torch\nfrom net import make_model\ntorch.save(make_model().state_dict(), "checkpoint.pth")'
PROGRAM = """
import torch
from net import make_model
shapes = ({0: torch.export.Dim("batch")},)
torch.export.save(torch.export.export(make_model().eval(), (torch.zeros(2, 3, 64, 64),), dynamic_shapes=shapes), "model.pt2")
"""
TIMM = 'import timm, torch\ntorch.save(timm.create_model("test_resnet", num_classes=10).state_dict(), "checkpoint.pth")'
HUB = """
from transformers import ResNetConfig, ResNetForImageClassification
config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=10)
ResNetForImageClassification(config).save_pretrained("folder_or_name")
"""
KERAS = """
import keras
from keras import layers
keras.utils.set_random_seed(0)
model = keras.Sequential([
    keras.Input((32, 32, 3)), layers.Rescaling(1 / 127.5, offset=-1), layers.Conv2D(16, 3, padding="same"),
    layers.BatchNormalization(), layers.ReLU(), layers.Conv2D(32, 3, strides=2, padding="same", activation="relu"),
    layers.GlobalAveragePooling2D(), layers.Dropout(0.2), layers.Dense(10, activation="softmax"),
])
model.save("model.keras")
model.export("saved_model", verbose=False)
"""
LITE = (
    KERAS
    + """
import tensorflow as tf
open("model.tflite", "wb").write(tf.lite.TFLiteConverter.from_keras_model(model).convert())
"""
)
PADDLE_MODEL = """
import paddle
from paddle import nn
paddle.seed(0)
model = nn.Sequential(
    nn.Conv2D(3, 16, 3, padding=1), nn.BatchNorm2D(16), nn.ReLU(), nn.Conv2D(16, 32, 3, stride=2), nn.Hardswish(),
    nn.AdaptiveAvgPool2D(1), nn.Flatten(), nn.Linear(32, 10), nn.Softmax(),
)
model.eval()
paddle.jit.save(model, "inference", input_spec=[paddle.static.InputSpec([None, 3, 32, 32], "float32", "image")])
"""


@dataclass(frozen=True)
class Place:
    """A Python to run code with, what else it may import, and what comes before any code."""

    python: Path
    path: tuple[Path, ...] = ()
    before: str = ""


def here() -> Place:
    return Place(Path(sys.executable))


def zoo() -> Place:
    if not (BUILD / "zoo" / "timm").is_dir():
        pytest.skip("timm is not in build/zoo: `make zoo` puts it there")
    stand_in = "from zoo.sources import make_importable\nmake_importable()\n"  # for torchvision, which no model needs
    return Place(Path(sys.executable), (SUPPORT,), stand_in)


def hub() -> Place:
    return Place(Path(sys.executable), (beside("transformers", TRANSFORMERS, without_their_own=OPTIMUM, kind=KIND),))


def tensorflow() -> Place:
    return Place(environment("tensorflow", TENSORFLOW, kind=KIND))


def paddle() -> Place:
    return Place(environment("paddle", PADDLE, kind=KIND))


# What each section of the page needs: where it runs, and the code that makes the model that it reads.
SECTIONS: dict[str, tuple[Callable[[], Place], str]] = {
    "PyTorch": (here, CHECKPOINT),
    "torch.export programs": (here, PROGRAM),
    "timm": (zoo, TIMM),
    "Hugging Face transformers": (hub, HUB),
    "Keras and TensorFlow": (tensorflow, KERAS),
    "TFLite": (tensorflow, LITE),
    "PaddlePaddle": (paddle, PADDLE_MODEL),
}
LABELS = "Files that end in labels"


def blocks() -> dict[str, list[tuple[str, str]]]:
    """The language and text of each code block, by section."""
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    pairs = (section.split("\n", 1) for section in sections)
    return {title: re.findall(r"```(python|sh)\n(.*?)```", text, re.DOTALL) for title, text in pairs}


def execute(place: Place, language: str, text: str, folder: Path) -> None:
    """Run a block in a folder."""
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONWARNINGS")}
    env = {**clean, "PATH": f"{place.python.parent}{os.pathsep}{clean['PATH']}", "HF_HUB_OFFLINE": "1",
           "PYTHONPATH": os.pathsep.join(map(str, (folder, *place.path)))}  # fmt: skip
    command = [str(place.python), "-c", place.before + text] if language == "python" else ["sh", "-ec", text]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=RUN_S)
    assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def check(path: Path, *, size: tuple[int, int] | None = None) -> None:
    """Split a file and compare with it, one image and five."""
    session = open_session(path)
    (image,) = session.get_inputs()
    for plan, stages in (("identity", 1), ("depth", 2)):
        out = path.parent / plan
        shutil.rmtree(out, ignore_errors=True)
        split_model(SplitOptions(path, plan=plan, stages=stages, out=out, size=size))
        with Dispatcher(out) as runner:
            for batch in (1, 5):
                shape = (batch, *(n or 0 for n in runner.manifest.input.shape[1:]))
                images = np.random.default_rng(batch).normal(size=shape).astype(np.float32)
                got = runner(images, exits=False).output
                assert_close(got, session.run(None, {image.name: images})[0], what=f"{plan} {batch}")
                assert got.shape == (batch, 10)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("section", SECTIONS)
def test_each_block_makes_a_good_file(section: str, tmp_path: Path) -> None:
    find, make = SECTIONS[section]
    place = find()
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    execute(place, "python", make, tmp_path)
    for language, text in blocks()[section]:
        (tmp_path / "model.onnx").unlink(missing_ok=True)
        execute(place, language, text, tmp_path)
        check(tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_files_made_by_optimum(tmp_path: Path) -> None:
    place = hub()
    execute(place, "python", HUB, tmp_path)
    line = "python -m optimum.exporters.onnx --model folder_or_name --task image-classification made"
    execute(place, "sh", line, tmp_path)
    check(tmp_path / "made" / "model.onnx", size=(64, 64))


def with_labels() -> onnx.ModelProto:
    """As AutoML services export: the label's place, and a map of labels to probabilities."""
    text = "g = GlobalAveragePool(z)  f = Flatten(g)  q = Gemm<transB=1>(f, wl, bl)  logits = Softmax<axis=1>(q)"
    model = ending(text)
    model.graph.node[-1].output[0] = "probabilities"
    names = [f"class {k}" for k in range(10)]
    model.graph.node.extend([
        helper.make_node("ArgMax", ["probabilities"], ["place"], axis=1, keepdims=0),
        helper.make_node("ZipMap", ["probabilities"], ["shares"], domain="ai.onnx.ml", classlabels_strings=names),
    ])  # fmt: skip
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("place", TensorProto.INT64, ["N"]))
    shares = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    model.graph.output.append(helper.make_value_info("shares", helper.make_sequence_type_proto(shares)))
    return model


def test_files_that_end_in_labels(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(with_labels().SerializeToString())
    with pytest.raises(ModelError, match=r"--output probabilities"):
        load_graph(path)
    ((language, text),) = blocks()[LABELS]
    execute(here(), language, text, tmp_path)


def test_every_section_is_run() -> None:
    assert {title for title, found in blocks().items() if found} == {*SECTIONS, LABELS}
