"""Options of reading data: strictness, and where progress and warnings go."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[int, int], None]  # images done, all images
Warn = Callable[[str], None]

logger = logging.getLogger(__name__)


def log_warning(text: str) -> None:
    """Pass a warning to `logging`."""
    logger.warning("%s", text)


@dataclass(frozen=True)
class Reading:
    """How data is read. `strict`: reject data with any unreadable picture; `warn`: called with each warning, a sentence."""

    strict: bool = False
    warn: Warn = log_warning
    progress: Progress | None = None


LENIENT = Reading()
