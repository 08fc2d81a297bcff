"""What all tests share: the profiles of hypothesis, and a fixture of signals.

`pytest --hypothesis-profile thorough` looks ten times longer for a counterexample; CI sees the same
examples every time.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# Tests assert no timings, and neither shall hypothesis: a busy machine is not a failure.
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)

settings.register_profile("local", parent=UNTIMED, max_examples=30)
settings.register_profile("repeatable", parent=UNTIMED, max_examples=30, derandomize=True)
settings.register_profile("thorough", parent=UNTIMED, max_examples=300)
settings.load_profile("repeatable" if os.environ.get("CI") == "true" else "local")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt for one test; processes that run tests in parallel may ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
