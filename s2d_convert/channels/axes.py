"""Follows axes through reshapes that merge and part them: of which axes of the roots each one is made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from s2d_convert.channels.kinds import Array

# What an axis is made of: the (axis, length) of one axis of the roots, or of several that were merged.
Tag = tuple[tuple[int, int], ...]
LOST: Tag = ((-1, 0),)


def shared_out(tags: list[Tag], lengths: list[int]) -> list[Tag]:
    """Distribute the parts of axes tagged `tags` over axes of these `lengths`; a tag is LOST where a part would be cut."""
    parts = [part for tag in tags for part in tag]
    if LOST in tags:
        return [LOST] * len(lengths)
    shared: list[Tag] = []
    for index, length in enumerate(lengths):
        taken: list[tuple[int, int]] = []
        last = index == len(lengths) - 1
        while parts and (last or int(np.prod([n for _, n in taken])) < length):
            taken.append(parts.pop(0))
        if int(np.prod([n for _, n in taken])) != length:
            return [LOST] * len(lengths)
        shared.append(tuple(taken))
    return shared


def aligned(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Return the finest pairs of axis runs with equal products that a reshape maps onto each other."""
    pairs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left, right, have, want = [], [], 1, 1
        if i < len(before):
            left.append(i)
            have *= before[i]
            i += 1
        if j < len(after):
            right.append(j)
            want *= after[j]
            j += 1
        while have != want:
            if have < want:
                left.append(i)
                have *= before[i]
                i += 1
            else:
                right.append(j)
                want *= after[j]
                j += 1
        pairs.append((left, right))
    return pairs


def reshaped(
    atoms: Array, tags: Sequence[Tag], before: tuple[int, ...], after: tuple[int, ...]
) -> tuple[Array, tuple[Tag, ...]]:
    """Reshape atoms of a tensor of shape `before` to `after`; axes that the atoms do not vary on keep the length 1."""
    form: list[int] = []
    whole: list[int] = []
    tags_after: list[Tag] = []
    for left, right in aligned(before, after):
        lengths = [after[a] for a in right]
        flat = all(atoms.shape[a] == 1 for a in left)
        form += [1] * len(right) if flat else lengths
        whole += [1 if flat else before[a] for a in left]
        tags_after += shared_out([tags[a] for a in left], lengths)
    return np.broadcast_to(atoms, whole).reshape(form), tuple(tags_after)
