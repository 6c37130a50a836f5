"""Which queries of a split a job works on."""

from __future__ import annotations

import numpy as np

from leverplus.dataset import Dataset
from leverplus.errors import InvalidConfig
from leverplus.ids import ItemId
from leverplus.random_order import derive_seed, random_first


def sample_queries(dataset: Dataset, split: str, limit: int | None, seed: int) -> list[ItemId]:
    """`limit` queries of the split, drawn with the seed, by id; all of them without a limit.

    Drawn, because the first ones of a split are no fair sample: they often share images and topics.
    """
    ids = dataset.split_ids(split)
    if limit is None:
        return list(ids)
    if limit > len(ids):
        raise InvalidConfig(field="queries", reason=f"{limit}, but split {split!r} has {len(ids)}; ask for at most that many")
    drawn = random_first(np.asarray(ids, dtype=np.int64), limit, derive_seed("queries", split, seed))
    return [ItemId(int(item_id)) for item_id in np.sort(drawn)]
