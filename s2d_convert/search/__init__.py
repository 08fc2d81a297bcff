"""Searches over a space of plans; they know neither models nor clocks."""
