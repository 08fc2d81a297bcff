"""Adapters from a dispatcher to serving stacks, each with its own extra. This module imports none of them.

`v2` (numpy only) turns requests of the V2 protocol (KServe, "Open Inference") into calls of the dispatcher and back.
"""
