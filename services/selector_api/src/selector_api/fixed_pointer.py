"""Policy `best_fixed`: the demonstrations that did best over the checkpoint's training data, the same for every query."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from leverplus.errors import InvalidConfig
from selector_api.serving import Pool, Query, Served


def fixed_pointer(served: Served, query: Query, shots: int, exclude: Sequence[int]) -> tuple[Pool, list[int]]:
    """The first of the checkpoint's ranked pointers that shows neither an excluded item nor the query's own image.

    It is taken from the whole split, not from the query's pool, so the pool that is answered is the ranked pointers' items.
    InvalidConfig where the checkpoint ranks none of that length, or none is left.
    """
    info = served.info
    if shots == 0:
        ranking: list[list[int]] = [[]]
    elif not (ranking := info.best_fixed.get(str(shots), [])):
        there = ", ".join(number for number, pointers in info.best_fixed.items() if pointers)
        reason = (
            f"best_fixed, but checkpoint {info.checkpoint_id} holds no fixed pointer of {shots} shots"
            + (f", only of {there}" if there else "; it was made without scored training data, or before they were kept")
            + ". Ask for another number of shots or policy, or train again on data with that number"
        )
        raise InvalidConfig(field="policy", reason=reason)
    ids = np.unique(np.asarray([item_id for pointer in ranking for item_id in pointer], dtype=np.int64))
    left_out = np.isin(ids, exclude) | served.showing_its_image(query, ids)
    pool = Pool.described(ids, {"sampler": "best_fixed"}).without(left_out)
    allowed = set(pool.ids.tolist())
    pointer = next((pointer for pointer in ranking if allowed.issuperset(pointer)), None)
    if pointer is None:
        reason = (
            f"best_fixed, but each of the {len(ranking)} fixed pointers of {shots} shots of checkpoint {info.checkpoint_id} "
            f"shows one of the items that are left out: {sorted(pool.description['excluded'])}"
        )
        raise InvalidConfig(field="policy", reason=reason)
    return pool, pointer
