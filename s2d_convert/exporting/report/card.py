"""README.md of an export: a model card that says what the folder is, its numbers, and how to run it.

All text that comes from outside (file names, names of tensors, numbers of a manifest) is escaped, so that it stays text in
Markdown and in the HTML that is made of it.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Sequence

from s2d_runtime import Manifest
from s2d_runtime.dispatcher import LABEL_KINDS

from s2d_convert._version import VERSION
from s2d_convert.base.text import answer_rows, next_commands, plain, promise_text, quantity
from s2d_convert.calibration.verdict import Outcome, worth_showing
from s2d_convert.exporting.report.facts import (
    first_network,
    images_are,
    made_on,
    model_name,
    outcomes_of,
    verdict_of,
)

SPECIAL = re.compile(r"([\\`*_\[\]#|~])")  # a bracket that is escaped makes no link of what follows
V2_TYPES = {"float32": "FP32", "float16": "FP16", "float64": "FP64", "uint8": "UINT8"}

IN_PYTHON = """\
```python
import numpy as np
from dispatcher import Dispatcher  # dispatcher.py of this folder, or: from s2d_runtime import Dispatcher

images = np.zeros({shape}, np.{dtype})  # as the static model takes them
with Dispatcher(".") as model:
    answer = model(images)
print(answer.output, answer.stage, answer.confidence)
```"""

BEHIND_A_SERVER = """\
```sh
python -m s2d_runtime.serving.http . --name model --port 8000  # package s2d-runtime with its extra http; or: s2d serve .
```

```python
import json
import urllib.request

import numpy as np

images = np.zeros({shape}, np.{dtype})
image = {{"name": {name}, "datatype": "{v2}", "shape": images.shape, "data": images.ravel().tolist()}}
request = urllib.request.Request(
    "http://127.0.0.1:8000/v2/models/model/infer",
    json.dumps({{"inputs": [image]}}).encode(),
    {{"Content-Type": "application/json"}},
)
answer = json.load(urllib.request.urlopen(request))
print({{output["name"]: output["data"] for output in answer["outputs"]}})
```"""

PLAIN = """\
```python
import json
from pathlib import Path

import numpy as np
import onnxruntime as ort

manifest = json.loads(Path("manifest.json").read_text(encoding="utf-8"))
policy = next(p for p in manifest["policies"] if p["budget"] == manifest["default_budget"])
providers = ["CPUExecutionProvider"]
sessions = [ort.InferenceSession(stage["file"], providers=providers) for stage in manifest["stages"]]


def answer(image):  # one image with its batch axis; returns the output and the stage that gave it
    values = {{manifest["input"]["name"]: image}}
    for number, session in enumerate(sessions, start=1):
        names = [node.name for node in session.get_outputs()]
        feeds = {{node.name: values[node.name] for node in session.get_inputs()}}
        values.update(zip(names, session.run(names, feeds)))
        if number == len(sessions) or values["confidence"][0] >= np.float32(policy["thresholds"][number - 1]):
            return values["output"], number


print(answer(np.zeros({shape}, np.{dtype})))
```"""


def escaped(text: str) -> str:
    """Return a text in one line without what Markdown or HTML would read as markup."""
    return SPECIAL.sub(r"\\\1", html.escape(plain(text), quote=False))


def card(manifest: Manifest) -> str:
    """Return the model card in Markdown."""
    return "\n\n".join(_parts(manifest)) + "\n"


def _parts(manifest: Manifest) -> Iterator[str]:
    model, stages = escaped(model_name(manifest)), len(manifest.stages)
    parts = "one stage" if stages == 1 else f"{stages} stages that run in order until one of them is sure"
    made = f", made or calibrated on {escaped(made_on(manifest))}" if made_on(manifest) else ""
    yield f"# {model} in stages"
    yield (
        f"A static image classifier, converted by s2d-convert {VERSION} into {parts}{made}. Easy images leave early, so that "
        "the mean latency falls; every stage is a plain ONNX file."
    )
    if first := first_network(manifest):
        yield f"Stage 1 is {escaped(first)}, a network of its own; the last stage is the model as it was."
    judged = verdict_of(manifest)
    if judged is not None:
        yield "\n".join(f"> {escaped(sentence)}" for sentence in judged.sentences)
    yield from _numbers(manifest)
    yield from _input(manifest)
    yield from _ways(manifest)
    yield from _limits(manifest)
    yield "## What comes next"
    commands = (f"{command}  # {purpose}" for command, purpose in next_commands(manifest, "."))
    yield "\n".join(["```sh", *commands, "```"])


def _numbers(manifest: Manifest) -> Iterator[str]:
    """Yield the tables of what was measured; without measurements what is expected."""
    yield "## Numbers"
    measured = manifest.measured
    if not measured:
        if manifest.data == "none":
            yield "Nothing was calibrated or measured: the model was only split."
        else:
            policy = manifest.default_policy
            yield (
                f"Expected on the images of calibration: {manifest.target_name} {100 * policy.expected_accuracy:.2f} % at "
                f"{policy.expected_latency:.3f} of the static model's mean latency."
            )
        return
    same = [("agreement with the static model", measured["agreement"])]
    if labels := measured.get("labels"):
        same.append(("agreement, label by label", labels["agreement"]))
    rows = [
        *((name, f"{100 * a:.2f} %", f"{100 * b:.2f} %") for name, a, b in answer_rows(measured)),
        *((name, "100.00 %", f"{100 * share:.2f} %") for name, share in same),
        (
            "mean latency",
            f"{measured['static_ms']:.3f} ms",
            f"{measured['mean_latency'] * measured['static_ms']:.3f} ms",
        ),
        ("worst latency (all stages)", "", f"{measured['worst_latency'] * measured['static_ms']:.3f} ms"),
        ("parameters", quantity(measured["static_parameters"]), quantity(measured["parameters"])),
    ]
    yield _table(("", "static model", "in stages"), rows)
    machine, latency = (escaped(str(measured.get(key, "not recorded"))) for key in ("machine", "latency"))
    images = f"{measured['images']} {images_are(measured)}, of the kind '{manifest.data}'"
    threads = f"{measured['threads']} thread(s)"
    yield f"On {images}; batch {measured['batch']}, {threads}; latency {latency} for {machine}."
    if outcomes := worth_showing(outcomes_of(manifest), manifest.default_budget):
        yield "Budgets that are worth their place, on the same images; `set_budget` of the dispatcher chooses among them:"
        yield _budgets(outcomes, manifest)


def _budgets(outcomes: Sequence[Outcome], manifest: Manifest) -> str:
    rows = [
        (
            f"{o.budget:g}{' (in use)' if o.budget == manifest.default_budget else ''}",
            f"{o.latency:.3f}",
            f"{100 * o.right:.2f} %",
            f"{100 * o.loss:.2f} ± {100 * o.loss_error:.2f}",
            ", ".join(f"{100 * share:.0f} %" for share in o.exit_share),
        )
        for o in outcomes
    ]
    return _table(("budget", "mean latency, static = 1", manifest.target_name, "points lost", "images per stage"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _input(manifest: Manifest) -> Iterator[str]:
    yield "## Input and output"
    shapes = [", ".join("N" if n is None else str(n) for n in spec.shape) for spec in (manifest.input, manifest.output)]
    yield (
        f"- input {escaped(manifest.input.name)}: {manifest.input.dtype} \\[{shapes[0]}\\]\n"
        f"- output of every stage: {manifest.output.kind} \\[{shapes[1]}\\], and its confidence \\[N\\]{_labels_given(manifest)}"
    )
    pixels = manifest.preprocess
    if pixels is not None:
        names = ("resize", "order", "scale", "mean", "std") if pixels.get("known", True) else ()
        facts = [str(pixels.get("formula", "")), *(f"{name} {pixels[name]}" for name in names if name in pixels)]
        yield f"From pixels to input: {escaped('; '.join(facts))}."


def _labels_given(manifest: Manifest) -> str:
    """Return which labels an output gives, as part of a sentence; '' where it gives one class."""
    if manifest.output.kind not in LABEL_KINDS:
        return ""
    limit = "0.5" if manifest.output.kind == "sigmoid" else "0"
    return f"; a label is given where its number is above {limit}, and the confidence is that of the least sure label"


def _ways(manifest: Manifest) -> Iterator[str]:
    spec = manifest.input
    values = {
        "shape": repr((1, *(n or 1 for n in spec.shape[1:]))),
        "dtype": spec.dtype,
        "name": json.dumps(spec.name),
        "v2": V2_TYPES.get(spec.dtype, "FP32"),
    }
    yield "## Run it"
    yield "All of it from inside this folder. **In Python**, with numpy and onnxruntime and nothing else:"
    yield IN_PYTHON.format(**values)
    if manifest.preprocess is not None and manifest.preprocess.get("known", True):
        yield 'Pictures in, names out: `s2d_runtime.Classifier(".")("photo.jpg").name` prepares them as the conversion did.'
    yield "**Behind a server** with the V2 protocol (KServe), health and metrics:"
    yield BEHIND_A_SERVER.format(**values)
    yield "**With onnxruntime alone**, in any language that it has:"
    yield PLAIN.format(**values)


def _limits(manifest: Manifest) -> Iterator[str]:
    yield "## What it does not promise"
    lines = [
        "The numbers hold for images like those that it was calibrated on. On other images early exits lose more than the static "
        "model does: watch with `Dispatcher.monitor()`, and calibrate again with `s2d calibrate`.",
    ]
    if manifest.data == "made-up":
        lines.insert(0, "All numbers come from made-up images: expect others on real ones.")
    if text := promise_text(manifest):
        lines.insert(0, escaped(text))
    yield "\n".join(f"- {line}" for line in lines)
