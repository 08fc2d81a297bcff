"""The common names of folders that hold the train, val and test part of a data set."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

_WORDS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("train", "training", "trn"), "train"),
        **dict.fromkeys(("val", "valid", "validation", "validate", "validating"), "val"),
        **dict.fromkeys(("dev", "devel", "development", "eval", "evaluation"), "val"),
        **dict.fromkeys(("test", "testing", "tst"), "test"),
    }
)
# Words that may accompany such a name without changing its meaning: `Training_Set`, `seg_test`, `val2017`, `test-images`.
_BESIDE = frozenset({"set", "data", "dataset", "split", "images", "image", "imgs", "img", "pictures", "seg", "folder"})


def role_of(name: str) -> str | None:
    """Return the role of a folder by its name: "train", "val", "test", or None for any other name."""
    words = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name))
    telling = [word.lower() for word in words if word.lower() not in _BESIDE]
    merged = [re.sub(r"(set|data)$", "", word) for word in telling]  # trainset, testdata
    roles = {_WORDS.get(word) for word in merged}
    return roles.pop() if len(merged) == len(roles) == 1 else None
