"""Thresholds and temperatures from logits, policies for a row of budgets, and risk control."""

from s2d_convert.calibration.careful import bounded_policies, careful_policies
from s2d_convert.calibration.policies import (
    Chosen,
    Scores,
    budget_policies,
    fit_temperatures,
    promised_policies,
)
from s2d_convert.calibration.risk_control import RiskBound

__all__ = [
    "Chosen",
    "RiskBound",
    "Scores",
    "bounded_policies",
    "budget_policies",
    "careful_policies",
    "fit_temperatures",
    "promised_policies",
]
