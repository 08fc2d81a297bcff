"""Channel analysis: what every operator does to channels, and which channels are coupled."""

# Importing the three modules of rules (linear, movement, pointwise) fills the table RULES.
from s2d_convert.channels.analysis import AnalysedModel, ChannelClass, Channels, Layout, analyse
from s2d_convert.channels.atoms import FREE
from s2d_convert.channels.kinds import FINAL_KINDS, RULES, Kind, Role, Rule
from s2d_convert.channels.linear import mix_weights
from s2d_convert.channels.macs import node_macs, total_macs
from s2d_convert.channels.movement import keeps_zero
from s2d_convert.channels.pointwise import slice_constant

__all__ = [
    "FINAL_KINDS",
    "FREE",
    "RULES",
    "AnalysedModel",
    "ChannelClass",
    "Channels",
    "Kind",
    "Layout",
    "Role",
    "Rule",
    "analyse",
    "keeps_zero",
    "mix_weights",
    "node_macs",
    "slice_constant",
    "total_macs",
]
