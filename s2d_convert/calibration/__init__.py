"""Thresholds and temperatures from logits, policies for a row of budgets, and risk control."""

from s2d_convert.calibration.policies import (
    Chosen,
    Scores,
    budget_policies,
    careful_policies,
    fit_temperatures,
    promised_policies,
)
from s2d_convert.calibration.risk_control import RiskBound

__all__ = [
    "Chosen",
    "RiskBound",
    "Scores",
    "budget_policies",
    "careful_policies",
    "fit_temperatures",
    "promised_policies",
]
