"""Settings that all tests share: the profiles of hypothesis.

`pytest --hypothesis-profile thorough` looks ten times longer for a counterexample; CI sees the same
examples every time.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Tests assert no timings, and neither shall hypothesis: a busy machine is not a failure.
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)

settings.register_profile("local", parent=UNTIMED, max_examples=30)
settings.register_profile("repeatable", parent=UNTIMED, max_examples=30, derandomize=True)
settings.register_profile("thorough", parent=UNTIMED, max_examples=300)
settings.load_profile("repeatable" if os.environ.get("CI") == "true" else "local")
