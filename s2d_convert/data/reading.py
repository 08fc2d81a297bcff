"""How data is read: what is refused, and where progress and warnings go."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[int, int], None]  # images done, images in all
Warn = Callable[[str], None]

logger = logging.getLogger(__name__)


def log_warning(text: str) -> None:
    """Pass a warning to `logging`."""
    logger.warning("%s", text)


@dataclass(frozen=True)
class Reading:
    """`strict` refuses data with any picture that cannot be read; `warn` gets what the user should mind, in sentences."""

    strict: bool = False
    warn: Warn = log_warning
    progress: Progress | None = None


LENIENT = Reading()
