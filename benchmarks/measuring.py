"""The last step of the stand, and the only one that sees the test images: accuracy and latency of every model.

Latency is always a ratio to the static model, timed in turn with it in one process; see
`s2d_convert.exporting.timing`. An exported folder is timed through the dispatcher, as users run it; a single file as
a plain onnxruntime session.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.methods import is_folder
from benchmarks.stand import Entry, Stand
from s2d_convert.base.arrays import Array, slices
from s2d_convert.base.sessions import Running, make_session
from s2d_convert.conversion.estimate import predicted_latency
from s2d_convert.data.images import Images
from s2d_convert.exporting.measure import measure
from s2d_convert.frontend.reference import StaticModel, to_logits
from s2d_convert.latency.meter import interleave

RUN_BATCH = 64
TIMED_BATCHES = 20
SECONDS = 2.0


@dataclass(frozen=True)
class Setting:
    """How a model is called: images per call and threads of onnxruntime."""

    batch: int
    threads: int

    @property
    def name(self) -> str:
        """As on the command line: BATCHxTHREADS."""
        return f"{self.batch}x{self.threads}"

    @staticmethod
    def parse(text: str) -> Setting:
        """Return the setting that `name` spells."""
        batch, threads = text.split("x")
        return Setting(int(batch), int(threads))


def measured(stand: Stand, entry: Entry, images: Images, settings: tuple[Setting, ...]) -> dict[str, Any]:
    """Return accuracy on all `images`, and for every setting the mean latency, the worst one and the static milliseconds.

    The accuracy comes with the first setting; for the others some batches are enough.
    """
    run = _measured_folder if is_folder(entry) else _measured_file
    found: dict[str, Any] = run(stand, entry, images, settings[0])
    found["latency"] = {settings[0].name: found.pop("timing")}
    for setting in settings[1:]:
        some = images.take(slice(0, min(len(images), TIMED_BATCHES * setting.batch)))
        found["latency"][setting.name] = run(stand, entry, some, setting)["timing"]
    stages = entry.facts.get("stage_latency")
    if stages is not None and len(stages) == len(found["exit_share"]):
        found["predicted"] = predicted_latency(stages, found["exit_share"])
    return found


def _measured_folder(stand: Stand, entry: Entry, images: Images, setting: Setting) -> dict[str, Any]:
    running = Running(setting.threads, setting.batch)
    static = StaticModel(stand.ready.graph, running)
    with running.dispatcher(stand.root / entry.path) as runner:
        runner.set_budget(entry.budget)
        got = measure(runner, static, images, running=running)
    timing = {"mean": got.mean_latency, "worst": got.worst_latency, "static_ms": got.static_ms}
    return {
        "accuracy": got.correct_dynamic,
        "static_accuracy": got.correct_static,
        "agreement": got.agreement,
        "exit_share": list(got.exit_share),
        "images": got.images,
        "macs": got.mean_macs / max(1, got.static_macs),
        "timing": timing,
    }


def _measured_file(stand: Stand, entry: Entry, images: Images, setting: Setting) -> dict[str, Any]:
    graph = stand.ready.graph
    static = StaticModel(graph, Running(setting.threads))
    session = make_session((stand.root / entry.path).read_bytes(), threads=setting.threads)
    name = session.get_inputs()[0].name

    def answers(batch: Array) -> Array:
        return to_logits(session.run(None, {name: batch})[0], graph.output_kind)

    said, reference = [], []
    for part in slices(len(images), RUN_BATCH):
        data = np.ascontiguousarray(images.batch(part))
        said.append(answers(data).argmax(axis=1))
        reference.append(static.logits(data).argmax(axis=1))
    own, theirs = np.concatenate(said), np.concatenate(reference)
    image = np.ascontiguousarray(images.batch(np.arange(setting.batch) % len(images)))
    calls = [partial(static.outputs, image), partial(session.run, None, {name: image})]
    for call in calls * 3:
        call()
    medians = np.median(interleave(calls, SECONDS), axis=0)
    ratio = float(medians[1] / medians[0])
    labels = images.labels
    return {
        "accuracy": None if labels is None else float((own == labels).mean()),
        "static_accuracy": None if labels is None else float((theirs == labels).mean()),
        "agreement": float((own == theirs).mean()),
        "exit_share": [1.0],
        "images": len(images),
        "timing": {"mean": ratio, "worst": ratio, "static_ms": float(1e3 * medians[0])},
    }
