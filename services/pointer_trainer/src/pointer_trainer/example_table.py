"""Examples laid end to end on one device: a batch is taken out of them by row, and no query is touched by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leverplus.embeddings import Embeddings
from pointer_trainer.batches import QueryExample, RlBatch

_SHARE_FOR_EMBEDDINGS = 0.5
"""Of the device's free memory; larger embeddings stay where they are, and each batch brings its own rows of them."""


class ExampleTable:
    """Q examples, at least one, and the embeddings they speak of.

    On a GPU the embeddings lie there too if they take no more than half of its free memory. On the CPU they are read where
    they are, mapped from their file for instance.
    """

    def __init__(self, examples: Sequence[QueryExample], embeddings: Embeddings, device: torch.device | str = "cpu") -> None:
        self.examples = examples
        self.device = torch.device(device)
        self._query_ids = np.array([example.query_id for example in examples], dtype=np.int64)
        self._shots = np.array([example.positions.shape[1] for example in examples])
        longest = int(self._shots.max())
        self._pools = _Ragged([example.pool.astype(np.int32) for example in examples], self.device)
        self._pointers = _Ragged([_widened(example.positions, longest) for example in examples], self.device)
        self._rewards = _Ragged([example.rewards for example in examples], self.device)
        self._query = EmbeddingRows(embeddings.query, self.device)
        shared = embeddings.candidate is embeddings.query
        self._candidate = self._query if shared else EmbeddingRows(embeddings.candidate, self.device)

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, rows: NDArray[np.int64]) -> RlBatch:
        """The examples at `rows` [B], in that order, padded to the largest among them."""
        query_ids = torch.from_numpy(self._query_ids[rows]).to(self.device)
        pools, pool_mask = self._pools.padded(rows, 0)
        pointers, mask = self._pointers.padded(rows, -1)
        rewards, _ = self._rewards.padded(rows, 0)
        return RlBatch(
            query_id=query_ids,
            query_emb=self._query.take(query_ids),
            cand_emb=self._candidate.take(pools),
            pool_mask=pool_mask,
            pointers=pointers[:, :, : int(self._shots[rows].max())].long(),
            rewards_raw=rewards,
            mask=mask,
        )

    def batches(
        self, size: int, order: NDArray[np.int64] | None = None, generator: np.random.Generator | None = None
    ) -> Iterator[RlBatch]:
        """All rows, or those of `order`, `size` at a time; each batch is made when it is asked for. Nothing is drawn."""
        rows = np.arange(len(self)) if order is None else order
        for start in range(0, len(rows), size):
            yield self.batch(rows[start : start + size])


class _Ragged:
    """Rows of different lengths, end to end on a device."""

    def __init__(self, parts: Sequence[NDArray[np.int32] | NDArray[np.float32]], device: torch.device) -> None:
        self._sizes = np.array([len(part) for part in parts])
        self._values = torch.from_numpy(np.concatenate(parts)).to(device)
        self._lengths = torch.from_numpy(self._sizes).to(device)
        self._starts = self._lengths.cumsum(0) - self._lengths

    def padded(self, rows: NDArray[np.int64], fill: int) -> tuple[Tensor, Tensor]:
        """[B, W, …] with `fill` after the end of a row, and the mask [B, W] of what is not filled."""
        device = self._values.device
        at = torch.from_numpy(rows).to(device)
        column = torch.arange(int(self._sizes[rows].max()), device=device)
        mask = column < self._lengths[at][:, None]
        values = self._values[torch.where(mask, self._starts[at][:, None] + column, 0)]
        return values.masked_fill(~mask.view(*mask.shape, *[1] * (values.ndim - 2)), fill), mask


class EmbeddingRows:
    """The rows of a matrix of embeddings, wherever it lies."""

    def __init__(self, matrix: NDArray[np.float32], device: torch.device) -> None:
        self._matrix = matrix
        fits = device.type == "cuda" and matrix.nbytes <= torch.cuda.mem_get_info(device)[0] * _SHARE_FOR_EMBEDDINGS
        self._on_device = torch.from_numpy(np.ascontiguousarray(matrix)).to(device) if fits else None

    def take(self, ids: Tensor) -> Tensor:
        """[…] → […, d]"""
        if self._on_device is not None:
            return self._on_device[ids.long()]
        return torch.from_numpy(self._matrix[ids.cpu().numpy()]).to(ids.device)


def _widened(positions: NDArray[np.int64], steps: int) -> NDArray[np.int32]:
    """[C, S] → [C, steps], −1 at the end."""
    return np.pad(positions.astype(np.int32), ((0, 0), (0, steps - positions.shape[1])), constant_values=-1)
