"""The options of the servers: names, defaults, limits and help, which every command line reads from here."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

MIB = 2**20
AUDIT = 0.002  # default for the share of images that the last stage answers too
# Triton rejects other names too. The name is part of a URL.
NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


class OptionError(ValueError):
    """An option has a value that is not allowed or not possible on this machine. The message is one sentence."""


def option(default: Any, kind: type, help_text: str, *, low: float = -math.inf, high: float = math.inf) -> Any:
    return field(default=default, metadata={"kind": kind, "help": help_text, "low": low, "high": high})


def _cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class ListenOptions:
    """How a server listens and what it allows. `check` raises OptionError."""

    host: str = option("127.0.0.1", str, "Address to listen on; anything but loopback is open to the network.")
    port: int = option(8000, int, "Port to listen on; 0 takes a free one.", low=0, high=65535)
    name: str | None = option(None, str, "Name of the model in URLs. [default: the folder's, without .s2d]")
    budget: float | None = option(None, float, "A calibrated budget. [default: the manifest's]", low=1e-6, high=1)
    threads: int = option(1, int, "Threads of onnxruntime per request.", low=1, high=1024)
    queue: int = option(64, int, "Requests that may wait for a worker; more get 503.", low=0, high=65536)
    rows: int = option(64, int, "Most images in one request.", low=1, high=65536)
    body_mib: float = option(16.0, float, "Largest body of a request, in MiB.", low=1 / 1024, high=1024)
    megapixels: float = option(25.0, float, "Largest picture in a body, in millions of pixels.", low=0.01, high=150)
    timeout_s: float = option(10.0, float, "Seconds that a request may take, body and waiting included.", low=0.1)

    def check(self) -> None:
        """Raise OptionError if a value is out of range."""
        for spec in fields(self):
            value, meta = getattr(self, spec.name), spec.metadata
            if meta["kind"] is str or value is None:
                continue
            low, high = meta["low"], meta["high"]
            if not (math.isfinite(value) and low <= value <= high):
                upper = f" and at most {high:g}" if high < math.inf else ""
                raise OptionError(f"{flag(spec.name)} {value:g}: at least {low:g}{upper} is allowed")
        if self.name is not None and not (self.name and set(self.name) <= NAME_LETTERS):
            raise OptionError(f"--name {self.name!r}: letters, digits, '.', '_' and '-' are allowed")

    @property
    def body_bytes(self) -> int:
        """The largest body of a request."""
        return int(self.body_mib * MIB)

    @property
    def most_pixels(self) -> int:
        """The most pixels of a picture in a body."""
        return int(self.megapixels * 1e6)


@dataclass(frozen=True)
class HttpOptions(ListenOptions):
    """The options of the small HTTP server."""

    workers: int | None = option(None, int, "Requests that run at once. [default: one per core]", low=1, high=1024)
    audit: float = option(
        AUDIT, float, "Share of images that the last stage answers too, beside requests, to see drift.", low=0, high=1
    )
    connections: int = option(512, int, "Most open connections.", low=1, high=65536)

    @property
    def running(self) -> int:
        """The number of requests that run at once."""
        return self.workers or _cores()


@dataclass(frozen=True)
class RayOptions(ListenOptions):
    """The options of the Ray Serve application."""

    max_batch: int = option(16, int, "With --ray: requests that a stage joins to one call.", low=1, high=4096)
    wait_ms: float = option(2.0, float, "With --ray: milliseconds that such a call waits for more.", low=0, high=10_000)
    replicas: int = option(4, int, "With --ray: most replicas of every stage.", low=1, high=10_000)
    cpus: float = option(1.0, float, "With --ray: cores that a replica asks for.", low=0, high=1024)


def model_name(folder: Path) -> str:
    """Return the default name of a folder in URLs: its own name without .s2d, reduced to allowed characters."""
    stem = folder.resolve().name.removesuffix(".s2d")
    return "".join(c if c in NAME_LETTERS else "_" for c in stem) or "model"


def runtime_version() -> str:
    """Return the version of this package, for the servers' metadata."""
    try:
        return version("s2d-runtime")
    except PackageNotFoundError:  # a copy of the sources that was never installed
        return "unknown"


def flag(name: str) -> str:
    """Return the command-line form of an option: `timeout_s` becomes `--timeout-s`."""
    return f"--{name.replace('_', '-')}"


def needs_extra(missing: ModuleNotFoundError, extra: str) -> str:
    """Return a sentence on a module that is missing because an extra of this package is not installed."""
    return f"{missing.name} is not installed for this Python; pip install 's2d-runtime[{extra}]'"
