"""The sweep over full-size architectures (`make slow`), and what it is made of."""

from __future__ import annotations

from pathlib import Path

import pytest
from zoo.page import page
from zoo.sources import is_installed
from zoo.sweep import TIMEOUT_S, in_own_process
from zoo.table import MEMBERS, Member

ROOT = Path(__file__).parents[2]
# Families of which at least nine tenths of the work must be divisible by channels.
WIDE = (
    "VGG", "ResNet", "ResNet V2", "Wide ResNet", "WRN", "DenseNet", "MobileNet V1", "MobileNet V2", "MobileNet V3",
    "MobileNet V4", "EfficientNet", "EfficientNet V2", "GhostNet",
)  # fmt: skip


def test_every_member_has_a_name_of_its_own() -> None:
    names = [m.name for m in MEMBERS]
    assert len(set(names)) == len(names)
    assert {m.source for m in MEMBERS} == {"timm", "pytorchcv"}
    assert set(WIDE) <= {m.family for m in MEMBERS}


def test_the_page_tells_failures_and_reasons() -> None:
    first, second = MEMBERS[:2]
    found = {
        first.name: {"family": first.family, "name": first.name, "size": 32, "splits": 0.5, "taps": 3, "nodes": 9,
                     "opaque": ["LRN: why"], "load_s": 1.0, "identity_s": 1.0, "depth_s": 2.0, "width_s": 3.0},
        second.name: {"family": second.family, "name": second.name, "size": 32, "failed": "depth", "error": "off",
                      "identity_s": 1.0},
    }  # fmt: skip
    text = page(found)
    assert "1 of 2 members pass everything" in text
    assert "50.0 % | 3 | yes | yes | yes | 1.0" in text
    assert "| yes | **no** | - |" in text
    assert f"{second.name}, depth: off" in text
    assert "- LRN: why: " in text


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S + 60)
@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: f"{member.source}-{member.name}")
def test_full_size(member: Member) -> None:
    if not is_installed(member.source):
        pytest.skip(f"{member.source} is not installed; `make zoo` installs it")
    found = in_own_process(member, seeds=1)
    assert "failed" not in found, found["error"]
    assert found["unsupported"] == []
    if member.family in WIDE:
        assert found["splits"] >= 0.9, found["opaque"]
