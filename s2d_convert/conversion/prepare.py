"""The first step of a conversion: load, analyse, read the data, and check the static model on it."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from s2d_convert.base.arrays import Array, slices
from s2d_convert.base.reporting import Reporter
from s2d_convert.base.sessions import MOST_THREADS, Running
from s2d_convert.calibration.answered import Answered
from s2d_convert.calibration.chance import FEW, interval
from s2d_convert.calibration.likeness import likeness
from s2d_convert.calibration.policies import Scores, check_classes, check_enough, check_kind
from s2d_convert.calibration.risk_control import RiskBound
from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.channels.macs import total_macs
from s2d_convert.conversion.context import Prepared, few_to_divide
from s2d_convert.conversion.options import ConvertOptions
from s2d_convert.data.class_names import check_names, chosen_names
from s2d_convert.data.images import Dataset, Images
from s2d_convert.data.labels import LabelSpace
from s2d_convert.data.loading import load_data
from s2d_convert.data.made_up import made_up_data
from s2d_convert.data.preprocess import Preprocess, make_preprocess
from s2d_convert.data.presets import PixelOptions
from s2d_convert.data.reading import Reading
from s2d_convert.errors import ModelError, StaticCheckError, UsageError
from s2d_convert.exporting.provenance import model_sha256
from s2d_convert.frontend.graph import Graph
from s2d_convert.frontend.load import load_graph
from s2d_convert.frontend.reference import StaticModel
from s2d_convert.frontend.static_check import check_static
from s2d_convert.latency.device_table import Table, read_table
from s2d_convert.network.staged_net import unsupported_nodes
from s2d_convert.plans.plan import FirstNetwork
from s2d_convert.plans.weights import static_weights
from s2d_convert.slicing.chain import build_stages, stage_logits
from s2d_convert.slicing.own_network import OwnNetwork, Side, check_colours, own_network, read_own
from s2d_convert.training.solving import FULL_IMAGES

SOLVED_WITH = 2 * FULL_IMAGES  # images; where nothing is trained, more of them are of use for judging alone
WITH_COPIES, MOST_COPIES, COPY_BYTES = 1000, 8, 2**28  # images and copies; of an image; of all of them
COPY_MACS = 2e12  # of the static model on all of them
CHECK_BATCH = 100
TRUSTED_ERROR = 0.1  # limit for the 90th percentile of a table's relative errors


def read_analysed(
    path: Path,
    *,
    size: tuple[int, int] | None = None,
    output: str | None = None,
    labels: str | None = None,
    strict: bool = True,
) -> AnalysedModel:
    """Load and analyse a model file (`load_graph`). Raises ModelError naming every node that is not supported,
    unless `strict` is off."""
    graph = load_graph(path, size=size, output=output, labels=labels)
    missing = unsupported_nodes(graph) if strict else ()
    if missing:
        raise ModelError(
            f"{path}: {len(missing)} of its operators cannot be trained here: {', '.join(map(str, missing))}; export the "
            "model with operators that docs/operators.md lists"
        )
    return AnalysedModel.of(graph)


def preprocess_of(graph: Graph, options: ConvertOptions) -> Preprocess:
    """Return the preprocessing that the options ask for, in the shape and layout that the model takes."""
    return _preprocess_for(graph, options.preprocess, options.pixels)


def _preprocess_for(graph: Graph, preset: str | None, pixels: PixelOptions) -> Preprocess:
    """Return the preprocessing of a preset with these overrides, in the shape and layout that a network takes."""
    shape = graph.shapes[graph.image]
    nhwc = graph.image_axis == 2
    height, width, channels = shape if nhwc else (shape[1], shape[2], shape[0])
    return make_preprocess(
        preset,
        size=(height, width),
        channels=channels,
        layout="NHWC" if nhwc else "NCHW",
        dtype="uint8" if graph.image_type == "uint8" else "float32",
        pixels=pixels,
    )


def prepare(options: ConvertOptions, reporter: Reporter) -> Prepared:
    """Load and analyse the model, read the data, and check that the static model works on it before anything is trained."""
    reporter.step("load")
    device = torch_device(options.device)
    model = read_analysed(options.model, size=options.size, output=options.output, labels=options.labels)
    graph = model.graph
    if options.classes is not None:
        check_names(options.classes, graph.classes)
    preprocess = preprocess_of(graph, options)
    table = read_latencies(options, reporter)
    static = StaticModel(graph, Running(threads=min(torch.get_num_threads(), MOST_THREADS), provider=options.provider))
    reporter.step("data")
    dataset = read_dataset(static, preprocess, options, reporter)
    names = chosen_names(options.classes, dataset.train.class_names, graph.class_names, warn=reporter.warn)
    if names is not None and len(set(names)) == len(names):  # some sets of names have two classes of one name
        dataset = dataset.named(names)
    if options.risk_bound is not None:
        images = promise_images(dataset)
        share = len(images) / sum(map(len, (dataset.train, dataset.calib, dataset.test)))
        check_promise(static, images, options.risk_bound, share=share, classes=graph.classes)
    reporter.step("static check")
    logits = static_logits(static, dataset.calib)
    static_check(static, dataset.calib, logits, options, reporter)
    right = graph.task.right(dataset.calib.labels, logits)
    weights = static_weights(graph, model.channels)
    held_out = Answered(dataset.calib, logits, right)
    ready = Prepared(model, weights, preprocess, dataset, static, held_out, device, options.provider, table, names)
    if few_to_divide(len(held_out)) and dataset.kind != "made-up":
        ready = replace(ready, copies=changed_copies(static, held_out, options))
    return ready if options.first is None else replace(ready, own=read_first(ready, options.first, options, reporter))


def changed_copies(static: StaticModel, held_out: Answered, options: ConvertOptions) -> Answered:
    """Return the images and copies of them that are shifted (and mirrored, where trainings mirror), some WITH_COPIES in all or
    fewer of a large network, with the static model's answers on each."""
    images = held_out.images
    size = max(1, images.raw(slice(0, 1)).nbytes)
    by_work = int(COPY_MACS / max(1, total_macs(static.graph) * len(images)))
    count = max(1, min(MOST_COPIES, WITH_COPIES // len(images), COPY_BYTES // (size * len(images)), by_work))
    if count == 1:
        return held_out
    copies = images.with_copies(count, np.random.default_rng(options.seed), flip=options.flip)
    logits = np.concatenate([held_out.logits, static_logits(static, copies.take(slice(len(images), None)))])
    return Answered(copies, logits, static.graph.task.right(copies.labels, logits))


def read_first(ready: Prepared, path: Path, options: ConvertOptions, reporter: Reporter) -> OwnNetwork:
    """Return the user's own network as a first chain, and report how often it agrees with the static model.

    Raises ModelError and UsageError where it cannot stand before the model, StaticCheckError where it agrees by chance alone.
    """
    graph, held_out = read_own(path, size=options.first_size, base=ready.graph), ready.held_out
    preset = options.first_preprocess or ("raw" if "uint8" in (graph.image_type, ready.graph.image_type) else None)
    try:
        preprocess = _preprocess_for(graph, preset or options.preprocess, options.first_pixels)
    except UsageError as error:
        raise UsageError(f"--first {path}: {error}; say how pixels become its input with --first-preprocess") from error
    known = options.says_preprocessing or not held_out.images.is_model_input
    check_colours(preprocess, ready.preprocess, known=known, path=path)
    facts = FirstNetwork(path.name, model_sha256(path))
    own = own_network(facts, Side(graph, preprocess), Side(ready.graph, ready.preprocess))
    logits = stage_logits(ready.graph, build_stages([own.chain]), held_out.images, provider=options.provider)[0]
    answers = ready.task.answers(logits)
    compared = likeness(ready.task, answers, ready.task.answers(held_out.logits), classes=graph.classes)
    agreement = f"agrees with the model on {100 * compared.agreement:.1f} % of {compared.images} held-out images"
    if not compared.same_classes:
        raise StaticCheckError(
            f"--first {path}: it {agreement}, which it would by chance ({100 * compared.by_chance:.1f} %): {compared.cause}; the "
            "same classes in the same order are expected; if its preprocessing is not the model's, say so by --first-preprocess"
        )
    right = held_out.counted(ready.task, logits[None]).mean()
    rate = "" if held_out.images.labels is None else f" and has {100 * right:.1f} % accuracy"
    reporter.note(f"{path.name}: {agreement}{rate}")
    return own


def read_latencies(options: ConvertOptions, reporter: Reporter) -> Table | None:
    """Return the table of `--latency`, if any, and report its machine and its accuracy."""
    if options.latency is None:
        return None
    digest = model_sha256(options.model)
    table = read_table(
        options.latency, model=options.model, model_sha256=digest, threads=options.threads, batch=options.batch
    )
    error = table.held_out_error
    reporter.note(f"latencies stand for {table.board} (predicted; on measured stages that were held out: {error})")
    if error.p90 > TRUSTED_ERROR:
        reporter.warn(
            f"a tenth of the predictions is off by more than {100 * TRUSTED_ERROR:.0f} %: the device was busy while it was "
            "profiled, or runs this model unevenly; profile it again, idle, with more --passes"
        )
    return table


def limit_threads() -> None:
    """Set torch's number of threads to OMP_NUM_THREADS.

    Other libraries may have changed it since torch read the variable.
    """
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isascii() and threads.isdecimal() and 0 < int(threads) <= MOST_THREADS:
        torch.set_num_threads(int(threads))


def torch_device(name: str) -> torch.device:
    """Return the torch device of --device, set to true float32 products. Raises UsageError for cuda if there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no CUDA device here; use --device auto or cpu")
    limit_threads()
    device = torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        # Files are compared with the network that was trained, and TF32's ten bits would part them. Where speed counts,
        # trainings multiply in bfloat16.
        torch.backends.cudnn.allow_tf32 = False
    return device


def read_dataset(static: StaticModel, preprocess: Preprocess, options: ConvertOptions, reporter: Reporter) -> Dataset:
    """Return the user's images, or made-up ones that the static model has labelled."""
    graph = static.graph
    if options.data is None or options.picture is not None:
        reporter.warn(_without_data(options))

        def answers(images: Array) -> Array:
            parts = slices(len(images), graph.batch_of(CHECK_BATCH))
            return np.concatenate([graph.task.answers(static.logits(images[part])) for part in parts])

        return made_up_data(
            options.work.made_up_images,
            preprocess,
            seed=options.seed,
            answers=answers,
            picture=options.picture,
        )
    dataset = load_data(
        options.data,
        preprocess=preprocess,
        space=LabelSpace(graph.classes, graph.task.several),
        seed=options.seed,
        of_use=None if options.work.trial_steps else SOLVED_WITH,
        reading=Reading(
            options.strict,
            warn=reporter.warn,
            progress=lambda done, total: reporter.progress(done, total, "images read", math.nan),
        ),
    )
    sizes = f"{len(dataset.train)} to train, {len(dataset.calib)} to calibrate, {len(dataset.test)} to report"
    reporter.note(f"{dataset.kind} images: {sizes}")
    if len(dataset.calib) < FEW:
        low, _ = interval(len(dataset.calib), len(dataset.calib))
        reporter.warn(
            f"thresholds and expected accuracy come from {len(dataset.calib)} images: even if all answers on them are right, "
            f"the true share may be {100 * low:.0f} %; give some hundred (or leave val/ out: a part of train/ is held out)"
        )
    if dataset.train.is_model_input and options.says_preprocessing:
        reporter.note("these arrays are taken as they are; the preprocessing is recorded for pictures that come later")
    if dataset.kind == "unlabelled":
        reporter.note("no labels: the target is agreement with the static model")
    if graph.half and options.weights == "float32":
        reporter.note("the file has float16 weights; the stages get float32 ones (--weights float16 keeps them small)")
    return dataset


def promise_images(dataset: Dataset) -> Images:
    """Return the half of the held-back images on which a promise is tested. The other half is for the report."""
    return dataset.test.take(slice(0, len(dataset.test) // 2))


def check_promise(static: StaticModel, images: Images, risk_bound: RiskBound, *, share: float, classes: int) -> None:
    """Raise DataError if no result on the images can keep the promise, before anything takes long.

    share: the part of all images that these are, for the message.
    """
    labelled = images.labels is not None
    check_kind(static.graph.task, risk_bound)
    check_enough(len(images), risk_bound, labelled=labelled, share=share)
    if risk_bound.per_class:
        no_logits = np.empty((0, 0, classes), np.float32)
        logits = static_logits(static, images)
        scores = Scores(no_logits, logits.argmax(axis=1), images.labels, images.class_names)
        check_classes(scores.images_of, risk_bound, labelled=labelled, share=share)


def _without_data(options: ConvertOptions) -> str:
    """Return the warning for a user who gives no data, or one picture."""
    source = (
        "no --data: images are made up"
        if options.picture is None
        else f"{options.picture}: its crops, and made-up images"
    )
    if options.exact:
        return (
            f"{source}, the static model labels them. The last stage stays the original and exits are careful, so that a bad "
            "guess costs exits rather than answers; but how many answers, and which latency, real images get, only real ones "
            "can tell: give some hundred, labelled or not, here (--data DIR) or to s2d calibrate."
        )
    return (
        f"{source}, the static model labels them. A first stage that is trained on such images (--mode train) is much too sure "
        "of itself on real ones: expect wrong answers. Leave --mode out, or give --data with real images, labelled or not."
    )


def static_logits(static: StaticModel, images: Images) -> Array:
    """Return the static model's logits [B, K] on images without augmentation."""
    parts = slices(len(images), static.graph.batch_of(CHECK_BATCH))
    return np.concatenate([static.logits(np.ascontiguousarray(images.batch(part))) for part in parts])


def static_check(
    static: StaticModel, images: Images, logits: Array, options: ConvertOptions, reporter: Reporter
) -> None:
    """Report the static model's accuracy on the images. Raises StaticCheckError if it is near chance or not finite."""
    checked = check_static(static, images, logits, force=options.force)
    reporter.note(checked.note)
    for text in checked.warnings:
        reporter.warn(text)
