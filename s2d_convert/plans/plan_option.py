"""What `--plan` asks for: a search among all plans or plans of one sort, or a written plan that is trained as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from s2d_convert.channels.analysis import AnalysedModel, Channels
from s2d_convert.errors import UsageError
from s2d_convert.plans.assignment import check_conversion
from s2d_convert.plans.plan import Conversion
from s2d_convert.plans.space import CASCADE, LINKED, PlanSpace, Shape

# The kinds and the shape that the plans behind each name have; the keys are `options.PLANS`.
LIMITS: Mapping[str, tuple[tuple[int, ...], Shape]] = MappingProxyType(
    {
        "search": ((LINKED, CASCADE), "any"),
        "depth": ((LINKED,), "depth"),
        "width": ((LINKED,), "width"),
        "cascade": ((CASCADE,), "any"),
        "uniform": ((LINKED, CASCADE), "any"),
    }
)


def restricted(space: PlanSpace, plan: str) -> PlanSpace:
    """Return the part of the space that `--plan` leaves to the search."""
    return space.restricted(*LIMITS[plan])


def read_plan(text: str, channels: Channels, *, names: Sequence[str]) -> Conversion:
    """Read the JSON file that `--plan` names; `names` are the words it could have been instead. Raises UsageError."""
    path = Path(text)
    if not path.is_file():
        raise UsageError(f"--plan {text}: expected {', '.join(names)} or the path of a JSON file; see docs/plan.md")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"--plan {text}: not readable as JSON ({error}); see docs/plan.md") from error
    return Conversion.from_json(data, channels)


def trainable_plan(text: str, model: AnalysedModel, *, names: Sequence[str]) -> Conversion:
    """Read a plan that is to be trained. Raises UsageError when it does not fit the model, or asks for something that cannot be
    trained."""
    conversion = read_plan(text, model.channels, names=names)
    check_conversion(model, conversion)
    for number, chain in enumerate(conversion.chains[1:], start=2):
        if chain.stages > 1 or chain.scale != 1:
            raise UsageError(
                f"--plan {text}: chain {number} has exits or a scale; only the first chain of a plan may have them, the others "
                "are the model, or a part of it whose weights are solved"
            )
    return conversion
