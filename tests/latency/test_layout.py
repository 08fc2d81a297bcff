"""The width of channel groups: what onnxruntime does on this machine, whatever its processor is called."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

import onnxruntime as ort
import pytest
from s2d_runtime import profile

from s2d_convert.latency.layout import LEAST_BLOCK, layout_block


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    layout_block.cache_clear()
    yield
    layout_block.cache_clear()


def test_on_this_machine() -> None:
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    if " avx2" not in flags:
        pytest.skip("blocks of x86 only")
    assert layout_block() == (16 if " avx512f" in flags else 8)


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "blocked", "expected"),
    [
        ("x86_64", "flags : sse2 avx2", True, 8),
        ("x86_64", "flags : avx2 avx512f", True, 16),
        ("aarch64", "Features : fp asimd", True, 16),
        ("arm64", "", True, 16),
        ("aarch64", "Features : fp asimd", False, LEAST_BLOCK),
    ],
)
def test_on_other_machines(
    machine: str, cpuinfo: str, blocked: bool, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Optimised:
        """A session that only writes the optimised model."""

        def __init__(self, _model: bytes, options: object, *, providers: list[str]) -> None:
            path = Path(getattr(options, "optimized_model_filepath"))  # noqa: B009 - onnxruntime has no types
            path.write_bytes(b"com.microsoft.nchwc" if blocked else b"Conv")

    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(profile, "_cpuinfo", lambda: cpuinfo)
    monkeypatch.setattr(ort, "InferenceSession", Optimised)
    assert layout_block() == expected
