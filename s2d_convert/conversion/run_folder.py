"""The run folder of a conversion: the results so far, so that a run that was killed at any point can be resumed.

It lies beside the final folder as ``OUT.run``. Every file in it is written completely or not at all, except the trace of
the search, whose incomplete last line is ignored.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from s2d_convert.base.files import naming, write_bytes, write_json
from s2d_convert.errors import OutputError
from s2d_convert.exporting.folder import PLAN, TRACE

# The files of a run folder, in the order in which they are written. The trace and the plan have the same names as in the
# exported folder.
ASKED = "asked.json"  # all options, for a resumed run that is given only the folder
CONFIG = "config.json"  # options and hashes that a resumed run must share
SECONDS = "seconds.json"  # seconds spent on every step so far
HEADS, FEATURES, DEPTH = "heads.npz", "features", "depth.json"  # exact mode: heads, their inputs, the chosen taps
KINDS = "kinds.json"  # the kinds of plan that can keep --max-latency
KERNELS = "kernels.json"  # what every kind of kernel costs, from which latencies are predicted
ALLOCATED = "allocated.json"  # first chains that the allocation found, for a row of latencies
BASELINES = "baselines.json"
CHOSEN = "chosen.json"  # the evaluation of the plan
FINALS = "finals.json"
FIRST_CHAIN, FINETUNED = "chain1.onnx", "finetuned.pt"
PLAIN = "float32"  # the folder before it is quantised


class RunFolder:
    """The paths and small files of one run."""

    def __init__(self, out: Path) -> None:
        self.path = out.with_name(out.name + ".run")

    def refuse_leftover(self, *, resume: bool) -> None:
        """Raise OutputError when an unfinished run exists and is not to be resumed, or is to be resumed and does not exist."""
        if self.path.exists() and not resume:
            raise OutputError(
                f"{self.path}: an unfinished run lies there; go on with it by --resume, or remove the folder"
            )
        if resume and not self.path.is_dir():
            raise OutputError(f"{self.path}: no unfinished run lies there; leave --resume out to begin one")

    def asked(self) -> dict[str, Any]:
        """Return the options of the unfinished run, as JSON. Raises OutputError when there is none or it does not tell them."""
        self.refuse_leftover(resume=True)
        try:
            asked = self.read_json(ASKED)
        except (OSError, ValueError):
            asked = None
        if not isinstance(asked, dict):
            raise OutputError(f"{self.path / ASKED}: cannot be read; remove {self.path} and start anew")
        return asked

    def open(self, fingerprint: dict[str, Any], asked: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Create the folder, or resume it. Raises OutputError when it belongs to a run with other options or files.

        asked: all options, which `asked` returns later.
        """
        config = self.path / CONFIG
        if self.path.exists():
            self._check(config, fingerprint)
            return
        try:
            self.path.mkdir(parents=True)
            write_json(self.path / ASKED, dict(asked))
            write_json(config, fingerprint)
        except OSError as error:
            file = error.filename or self.path
            raise OutputError(f"{file}: cannot be written ({error.strerror}); choose another --out") from error

    def _check(self, config: Path, fingerprint: dict[str, Any]) -> None:
        try:
            before = json.loads(config.read_text(encoding="utf-8"))
        except FileNotFoundError:  # the earlier run was killed before it began
            write_json(config, fingerprint)
            return
        except (OSError, ValueError) as error:
            raise OutputError(f"{config}: cannot be read; remove {self.path} and start anew") from error
        changed = sorted(k for k in {*before, *fingerprint} if before.get(k) != fingerprint.get(k))
        if changed:
            raise OutputError(
                f"{self.path}: the unfinished run had another {', '.join(changed)}; "
                "resume it with the same options and files, or remove the folder"
            )

    def read_json(self, name: str) -> Any:
        """Return the content of a JSON file, None if it does not exist yet."""
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def read_baselines(self) -> dict[str, Any]:
        """Return the results of the search and its baselines, {} if there was no search."""
        return dict(self.read_json(BASELINES) or {})

    def checkpoint(self, training: str) -> Path:
        """Return the path of a training's checkpoint."""
        return self.path / f"{training}.part.pt"

    def read_plan(self) -> Any:
        """Return the chosen plan as JSON, None if there is none yet."""
        return self.read_json(PLAN)

    def write_plan(self, plan: Any, chosen: Mapping[str, Any]) -> None:
        """Save the chosen plan and its evaluation."""
        self.write_json(CHOSEN, chosen)
        self.write_json(PLAN, plan)

    def write_json(self, name: str, data: Any) -> None:
        """Write a JSON file completely or not at all."""
        write_json(self.path / name, data)

    def trace(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of the search trace so far, without an incomplete last line."""
        path = self.path / TRACE
        if not path.exists():
            return
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                return

    def append_trace(self, entry: dict[str, Any]) -> None:
        """Append one line to the search trace."""
        with naming(self.path / TRACE), (self.path / TRACE).open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(entry, allow_nan=False) + "\n")

    def rewrite_trace(self) -> None:
        """Remove an incomplete last line of the search trace, so that lines can be appended."""
        lines = [json.dumps(entry) + "\n" for entry in self.trace()]
        write_bytes(self.path / TRACE, "".join(lines).encode())

    def whole_trace(self) -> bytes | None:
        """Return the trace without an incomplete last line, None if there is no trace."""
        if not (self.path / TRACE).exists():
            return None
        self.rewrite_trace()
        return (self.path / TRACE).read_bytes()

    def remove(self) -> None:
        """Delete the folder, because the run is complete."""
        shutil.rmtree(self.path, ignore_errors=True)
