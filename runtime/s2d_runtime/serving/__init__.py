"""Adapters that put a dispatcher behind a serving stack, each behind an extra of its own; nothing is imported from here.

`v2` (numpy only) turns requests of the V2 protocol (KServe, "Open Inference") into calls of the dispatcher and back.
"""
