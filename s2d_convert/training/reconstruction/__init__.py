"""Weights of any plan in closed form, from images and without a gradient step."""

from __future__ import annotations

from s2d_convert.training.reconstruction.plan_solver import Settings, Solved
from s2d_convert.training.reconstruction.reconstruction import Reconstruction
from s2d_convert.training.reconstruction.ridge import MAX_COLUMNS, NodeError
from s2d_convert.training.reconstruction.selection import data_importance

__all__ = ["MAX_COLUMNS", "NodeError", "Reconstruction", "Settings", "Solved", "data_importance"]
