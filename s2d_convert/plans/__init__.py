"""Plans: which channel unit and which exit belongs to which stage, and the space that a search chooses from."""

from s2d_convert.plans.assignment import Effective, check_conversion
from s2d_convert.plans.divisions import Division, divide
from s2d_convert.plans.exit_points import candidate_taps
from s2d_convert.plans.heuristics import depth_plan, random_plan, width_plan
from s2d_convert.plans.plan import Conversion, Plan, identity_plan
from s2d_convert.plans.space import PlanSpace
from s2d_convert.plans.stage_choices import Choices, StageChoice
from s2d_convert.plans.weights import ExitHead, Weights, static_weights

__all__ = [
    "Choices",
    "Conversion",
    "Division",
    "Effective",
    "ExitHead",
    "Plan",
    "PlanSpace",
    "StageChoice",
    "Weights",
    "candidate_taps",
    "check_conversion",
    "depth_plan",
    "divide",
    "identity_plan",
    "random_plan",
    "static_weights",
    "width_plan",
]
