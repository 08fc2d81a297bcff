"""The names of classes (or labels) that a manifest records, in its free-form part.

Folders of older versions have none, and so does a network whose conversion was told none.
"""

from __future__ import annotations

import math
import reprlib

from s2d_runtime.dispatcher import DispatcherError, Manifest

CLASS_NAMES = "class_names"  # in the provenance


def class_count(manifest: Manifest) -> int:
    """Return the number of classes, or labels."""
    return math.prod(n or 1 for n in manifest.output.shape)


def class_names(manifest: Manifest) -> tuple[str, ...] | None:
    """Return the recorded names in the order of the model's output, None if there are none.

    Raises DispatcherError when they are not as many texts as there are classes.
    """
    found = manifest.provenance.get(CLASS_NAMES)
    if found is None:
        return None
    count = class_count(manifest)
    if not isinstance(found, list) or len(found) != count or not all(isinstance(name, str) for name in found):
        raise DispatcherError(
            f"manifest.json: provenance, {CLASS_NAMES}: got {reprlib.repr(found)}; expected {count} texts"
        )
    return tuple("".join(letter if letter.isprintable() else "?" for letter in name) for name in found)
