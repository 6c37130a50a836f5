"""What a linear reward model sees of a pointer: how near each demonstration is to the query, by its place in the prompt."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from leverplus.embeddings import Embeddings
from leverplus.ids import ItemId
from leverplus.vectors import measurable, unit

Floats = NDArray[np.float64]


def item_features(embeddings: Embeddings, query_id: ItemId, pool: NDArray[np.int64]) -> Floats:
    """[K, f]: cosine of each block of the query and the candidate, less its mean over the pool, and the products of any two."""
    query, candidates = embeddings.query[query_id], embeddings.candidate[pool]
    columns: list[Floats] = []
    for block in embeddings.manifest.blocks:
        part = slice(block.start, block.stop)
        cosine = unit(measurable("candidates", candidates[:, part])) @ unit(measurable("query", query[part]))
        columns.append(cosine.astype(np.float64) - float(cosine.mean()))
    products = [columns[a] * columns[b] for a in range(len(columns)) for b in range(a, len(columns))]
    return np.stack([*columns, *products], axis=1)


def pointer_features(items: Floats, pointers: NDArray[np.int64]) -> Floats:
    """items [K, f] and pointers [C, S] → [C, 1 + S·f]: a constant, then the items' features place by place."""
    placed = items[pointers].reshape(len(pointers), -1)
    return np.concatenate([np.ones((len(pointers), 1)), placed], axis=1)
