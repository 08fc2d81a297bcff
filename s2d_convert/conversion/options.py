"""The options of a conversion: one frozen dataclass, from which the command line takes its defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from s2d_runtime.pictures import IMAGE_SUFFIXES
from s2d_runtime.policies import MAX_LOSS

from s2d_convert.base.sessions import Running
from s2d_convert.calibration.risk_control import RiskBound
from s2d_convert.data.presets import PixelOptions
from s2d_convert.errors import UsageError


@dataclass(frozen=True)
class Effort:
    """The amounts of work behind `--effort`.

    Epochs are passes over the training images. A training on a small data set takes at least `finetune_min_steps`; with this
    and the epochs at 0, nothing is trained. `head_*` are for exit heads in exact mode, `trial_steps` for the cheapest plans in
    the finals.
    """

    evaluations: int
    finetune_epochs: float
    finetune_min_steps: int
    baselines: bool
    groups: int
    made_up_images: int
    head_images: int
    head_epochs: float
    trial_steps: int

    def untrained(self) -> Effort:
        """Return the same amounts without trainings of first chains."""
        return replace(self, finetune_epochs=0.0, finetune_min_steps=0, trial_steps=0)


EFFORTS: Mapping[str, Effort] = MappingProxyType(
    {
        "instant": Effort(24, 0.0, 0, False, 4, 4000, 8000, 4.0, 0),
        "quick": Effort(24, 1.5, 300, False, 4, 8000, 20000, 8.0, 60),
        "standard": Effort(120, 7.5, 1000, True, 4, 20000, 30000, 12.0, 300),
        "thorough": Effort(400, 40.0, 5000, True, 8, 50000, 50000, 20.0, 900),
    }
)
# With --time the clock ends every part; these are the most that it may be.
TIMED = Effort(400, 400.0, 2000, False, 4, 20000, 30000, 12.0, 300)
LEAST_SECONDS = 30.0
DEVICES = ("auto", "cpu", "cuda")
MODES = ("train", "exact")
LABELS = ("classes", "multi")  # values of --labels
FLOATS = ("float32", "float16")
ARITHMETIC = ("int8", "int8:early", "fp16")  # of --quantize; early: all stages but the last
EXACT_PLANS = ("search", "depth", "cascade")  # of exact mode
PLANS = ("search", "depth", "width", "cascade", "uniform")
FIRST = "first"  # of --plan: the network of --first alone
NAMED_PLANS = (*PLANS, FIRST)


def check_budget(name: str, budget: float) -> None:
    """Raise UsageError unless the option is a share of the static latency."""
    if not (math.isfinite(budget) and 0 < budget <= 1):
        raise UsageError(f"--{name} {budget:g}: a share of the static latency above 0 and at most 1 is allowed")


def risk_bound_of(max_drop: float | None, confidence: float, *, per_class: bool = False) -> RiskBound | None:
    """Return the bound behind --max-drop, --confidence and --per-class, None without the first. Raises UsageError."""
    if per_class and max_drop is None:
        raise UsageError("--per-class: means nothing without --max-drop; give both, or leave it out")
    risk_bound = RiskBound(0.01 if max_drop is None else max_drop, confidence, per_class)
    return None if max_drop is None else risk_bound


def check_choice(name: str, text: str, allowed: Sequence[str]) -> None:
    """Raise UsageError unless the option has one of the allowed values."""
    if text not in allowed:
        raise UsageError(f"--{name} {text}: expected one of {', '.join(allowed)}")


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise UsageError(f"--{name} {value}: {low} to {high} is allowed")


@dataclass(frozen=True)
class ConvertOptions:
    """The options of `s2d convert`. Raises UsageError for values out of range and for contradictions.

    budget: the allowed mean latency as a share of the static model's; None: the lowest at which accuracy (agreement, without
    labels) drops by at most `max_loss`, as far as the images show. max_latency: the same for an image that runs through every
    stage; None: any. latency: the board file of the device whose latencies count; None: they are measured on this machine.
    time: the seconds that the conversion may take; None: as many as `effort` needs.

    max_drop, confidence, per_class: the promise, if any. Without a budget, the default policy is the cheapest one that keeps
    it. first: the user's own network that may stand before the model; what `first_*` leave out is as with the model.
    classes: the names of the classes; None: those of the class folders or of the model's metadata.
    """

    model: Path
    out: Path
    data: Path | None = None
    budget: float | None = None
    max_loss: float = MAX_LOSS
    max_latency: float | None = None
    latency: Path | None = None
    max_drop: float | None = None
    confidence: float = 0.95
    per_class: bool = False
    stages: int = 2
    threads: int = 1
    batch: int = 1
    provider: str = "CPUExecutionProvider"
    device: str = "auto"
    effort: str = "standard"
    time: float | None = None
    seed: int = 0
    mode: str | None = None
    plan: str = "search"
    weights: str = "float32"
    quantize: str | None = None
    resume: bool = False
    ray: str | None = None
    flip: bool = True
    output: str | None = None
    labels: str | None = None
    classes: tuple[str, ...] | None = None
    size: tuple[int, int] | None = None
    preprocess: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale: float | None = None
    order: str | None = None
    resize: str | None = None
    crop_ratio: float | None = None
    fill: int | None = None
    bits: int | None = None
    first: Path | None = None
    first_size: tuple[int, int] | None = None
    first_preprocess: str | None = None
    first_mean: tuple[float, ...] | None = None
    first_std: tuple[float, ...] | None = None
    first_scale: float | None = None
    first_order: str | None = None
    strict: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        if self.budget is not None:
            check_budget("budget", self.budget)
        if not (math.isfinite(self.max_loss) and 0 <= self.max_loss < 1):
            raise UsageError(
                f"--max-loss {self.max_loss:g}: a share from 0 to 1 is allowed, such as 0.01 for one point"
            )
        _ = self.running
        if self.max_latency is not None and not (math.isfinite(self.max_latency) and self.max_latency > 0):
            raise UsageError(
                f"--max-latency {self.max_latency:g}: a multiple of the static latency above 0 is allowed, such as 1.05"
            )
        if self.time is not None and not (math.isfinite(self.time) and self.time >= LEAST_SECONDS):
            raise UsageError(f"--time {self.time:g}s: at least {LEAST_SECONDS:.0f} s are needed, such as 10m")
        _check_range("stages", self.stages, 2, 4)
        _check_range("seed", self.seed, 0, 2**31 - 1)
        for name, allowed in (("effort", tuple(EFFORTS)), ("device", DEVICES), ("weights", FLOATS)):
            check_choice(name, getattr(self, name), allowed)
        for name, choices in (("quantize", ARITHMETIC), ("labels", LABELS), ("mode", MODES)):
            if getattr(self, name) is not None:
                check_choice(name, getattr(self, name), choices)
        if self.plan not in NAMED_PLANS and not Path(self.plan).is_file():
            raise UsageError(f"--plan {self.plan}: expected {', '.join(NAMED_PLANS)} or the path of a JSON file")
        self._check_together()

    def _check_together(self) -> None:
        """Raise UsageError for options that contradict each other."""
        if self.plan not in (*EXACT_PLANS, FIRST) and self.exact:
            raise UsageError(
                f"--plan {self.plan}: exact mode has {', '.join(EXACT_PLANS)}; leave --plan out, or give --mode train"
            )
        if self.plan == "cascade" and self.exact and (self.data is None or self.picture is not None):
            raise UsageError(
                "--plan cascade: exact mode without images has exits by depth only; give images with --data"
            )
        if self.risk_bound is not None and (self.data is None or self.picture is not None):
            raise UsageError("--max-drop: a promise over made-up images is worth nothing; give real ones with --data")
        if self.risk_bound is not None and self.quantize is not None:
            raise UsageError(
                "--quantize with --max-drop: the promise would be tested before the stages change; convert first, then "
                "s2d export OUT --quantize, then s2d calibrate on what that writes"
            )
        if self.weights != "float32" and self.quantize == "int8":
            raise UsageError(
                "--weights float16 with --quantize int8: no stage keeps float weights; leave one of the two out"
            )
        self._check_first()
        if self.ray is not None and self.exact:
            raise UsageError("--ray: exact mode has no search to spread; leave it out, or give --mode train")
        if self.latency is not None and self.quantize is not None:
            raise UsageError(
                "--quantize with --latency: the device's table knows float32 stages only; convert first, then s2d export OUT "
                "--quantize here, then python -m s2d_runtime.calibrate on the device, which measures the stages there"
            )

    def _check_first(self) -> None:
        """Raise UsageError for options of --first that lack it, or real images."""
        if self.first is None:
            given = [f.name for f in fields(self) if f.name.startswith("first_") and getattr(self, f.name) is not None]
            if given or self.plan == FIRST:
                what = f"--{given[0].replace('_', '-')}" if given else f"--plan {FIRST}"
                raise UsageError(f"{what}: means nothing without --first; give both, or leave it out")
        elif self.data is None or self.picture is not None:
            raise UsageError(
                "--first: made-up images do not show where it can be relied on; give real ones with --data"
            )

    @property
    def running(self) -> Running:
        """How the stages are run when their latency is measured. Raises UsageError."""
        return Running(self.threads, self.batch, self.provider)

    @property
    def risk_bound(self) -> RiskBound | None:
        """The requested bound on the risk, None if there is none. Raises UsageError."""
        return risk_bound_of(self.max_drop, self.confidence, per_class=self.per_class)

    @property
    def exact(self) -> bool:
        """Whether the last stage stays the original: if requested, and by default without data."""
        return self.mode == "exact" if self.mode is not None else self.data is None or self.picture is not None

    @property
    def picture(self) -> Path | None:
        """The one picture that `data` is, if it is one."""
        is_one = self.data is not None and self.data.suffix.lower() in IMAGE_SUFFIXES and self.data.is_file()
        return self.data if is_one else None

    @property
    def says_preprocessing(self) -> bool:
        """Whether any option concerns the way from pixels to model input."""
        return any(x is not None for x in (self.preprocess, self.mean, self.std, self.scale, self.order))

    @property
    def pixels(self) -> PixelOptions:
        """The overrides of the preprocessing's preset."""
        return PixelOptions(
            self.scale, self.order, self.resize, self.crop_ratio, self.fill, self.bits, self.mean, self.std
        )

    @property
    def first_pixels(self) -> PixelOptions:
        """The overrides of the preset of the network of --first: its own, or those of the model."""
        own = PixelOptions(self.first_scale, self.first_order, mean=self.first_mean, std=self.first_std)
        if self.first_preprocess is not None:
            return own
        names = [f.name for f in fields(own) if f.name in ("scale", "order", "mean", "std")]
        return replace(own, **{n: getattr(self.pixels, n) for n in names if getattr(own, n) is None})

    @property
    def work(self) -> Effort:
        """The amounts of work behind `effort`, or the most that `time` allows."""
        return EFFORTS[self.effort] if self.time is None else TIMED

    def to_json(self) -> dict[str, Any]:
        """Return all options but --resume, JSON-able, with paths that hold in any working directory."""
        plain = {**asdict(self), "plan": self.plan if self.plan in NAMED_PLANS else str(Path(self.plan).absolute())}
        del plain["resume"]
        return {name: str(value.absolute()) if isinstance(value, Path) else value for name, value in plain.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ConvertOptions:
        """Return the options of `to_json`. Values may also be paths and tuples. Raises UsageError."""
        kinds = {field.name: str(field.type) for field in fields(cls)}
        if unknown := sorted(set(data) - set(kinds)):
            raise UsageError(
                f"the options {', '.join(unknown)} are unknown; go on with the version that they were given to"
            )
        given: dict[str, Any] = {}
        for name, value in data.items():
            if value is not None:
                is_path = "Path" in kinds[name]
                given[name] = Path(value) if is_path else tuple(value) if isinstance(value, list) else value
        return cls(**given)

    def fingerprint(self) -> dict[str, Any]:
        """Return everything that must be equal for a run folder to be resumed, JSON-able; the promise and names concern
        the last step only."""
        plain = asdict(self)
        if self.plan not in NAMED_PLANS:
            plain["plan"] = str(Path(self.plan).resolve())
        for name in (
            "resume",
            "ray",
            "device",
            "max_drop",
            "confidence",
            "per_class",
            "strict",
            "force",
            "classes",
            "time",
        ):
            del plain[name]
        return {
            k: str(v.resolve()) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v
            for k, v in plain.items()
        }
