"""Which queries are trained on, and which judge the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from leverplus.errors import InvalidInput
from leverplus.ids import ItemId


def split_queries(
    query_ids: Sequence[ItemId], image_ids: Mapping[ItemId, str], ratio: float, split: Literal["by_query", "by_image"]
) -> tuple[list[ItemId], list[ItemId]]:
    """(train, held out), both ascending and neither empty: the first `ratio` of the queries by id are trained on.

    `by_image` goes by the first id of each image and keeps an image's queries together; train then holds at least `ratio` of the
    queries, unless that would take the last image. InvalidInput where there is nothing to divide.
    """
    ordered = sorted(query_ids)
    units: dict[ItemId | str, list[ItemId]] = {}
    for query_id in ordered:
        units.setdefault(query_id if split == "by_query" else image_ids[query_id], []).append(query_id)
    if len(units) < 2:
        what = "query" if split == "by_query" else "image"
        raise InvalidInput(f"the RL data hold {len(units)} {what} to split by; a held-out part needs at least 2 of them")
    # 0.29 · 100 is 28.999…: what is whole on paper must stay whole.
    wanted = max(int(len(ordered) * ratio + 1e-9), 1)
    train: list[ItemId] = []
    groups = list(units.values())
    for group in groups[:-1]:
        if len(train) >= wanted:
            break
        train += group
    taken = set(train)
    return sorted(train), [query_id for query_id in ordered if query_id not in taken]
