"""One channel rule per operator: the single source for ties, masks, slicing and MAC counts; see `rules_base`."""

from __future__ import annotations

from s2d_convert.channels import linear as rules_mix
from s2d_convert.channels import movement as rules_move

# Importing these modules fills the table.
from s2d_convert.channels import pointwise as rules_map
from s2d_convert.channels.kinds import RULES, Array, Context, Kind, Role, Rule, opaque, role_of, rule
from s2d_convert.channels.linear import PRODUCTS, macs_of, macs_per_weight, mix_weights, transposed_kernel
from s2d_convert.channels.movement import block_channels, keeps_zero, move, pad_value, tiled_axes
from s2d_convert.channels.pointwise import UNDEFINED_AT_ZERO, channel_axis_of_constant, reduced_axes, slice_constant

__all__ = [
    "PRODUCTS",
    "RULES",
    "UNDEFINED_AT_ZERO",
    "Array",
    "Context",
    "Kind",
    "Role",
    "Rule",
    "block_channels",
    "channel_axis_of_constant",
    "keeps_zero",
    "macs_of",
    "macs_per_weight",
    "mix_weights",
    "move",
    "opaque",
    "pad_value",
    "reduced_axes",
    "role_of",
    "rule",
    "slice_constant",
    "tiled_axes",
    "transposed_kernel",
]

TABLES = (rules_map, rules_mix, rules_move)
