"""Items, positions and pointers: three things that are all integers and must not be mixed up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NewType, cast

from leverplus.errors import InvalidPointer

ItemId = NewType("ItemId", int)
"""0-based line of a dataset's items.jsonl, over all splits. A query's id is the id of its item."""

Position = NewType("Position", int)
"""Index inside one pool."""

Pointer = tuple[ItemId, ...]
"""Distinct demonstrations in prompt order; the last stands next to the query. Empty: zero-shot."""

MAX_SHOTS = 4


def check_pointer(pointer: Sequence[int], *, query_id: int, item_count: int) -> Pointer:
    """The pointer as a tuple, or InvalidPointer: too long, repeated, the query itself, or not in the dataset."""

    def refuse(reason: str) -> InvalidPointer:
        return InvalidPointer(query_id=query_id, pointer=list(pointer), reason=reason)

    if len(pointer) > MAX_SHOTS:
        raise refuse(f"{len(pointer)} demonstrations, at most {MAX_SHOTS} are allowed")
    if len(set(pointer)) != len(pointer):
        raise refuse("a demonstration is named twice")
    if query_id in pointer:
        raise refuse("the query is its own demonstration")
    for item_id in pointer:
        if not 0 <= item_id < item_count:
            raise refuse(f"item {item_id} is outside the dataset, which has ids 0 to {item_count - 1}")
    return cast(Pointer, tuple(pointer))
