"""Attention over packed sequences: the rows of all sequences lie one behind the other, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

Rows = npt.NDArray[np.int64]

_PADDING_LIMIT = 1.25
"""Sequences of different lengths share a call as long as it computes at most so many times what they need."""


@dataclass(frozen=True)
class Bucket:
    """Sequences that go through one call: rows of their queries [n, q] and keys [n, k], and what is seen [n, 1, q, k] or None.

    Where a sequence is shorter than the longest, its last row stands again.
    """

    queries: Tensor
    keys: Tensor
    seen: Tensor | None


class Spans:
    """Where each sequence's queries and keys lie among the rows of all, by their lengths in order."""

    def __init__(self, query_lengths: Sequence[int], key_lengths: Sequence[int], device: torch.device, *, causal: bool) -> None:
        """`causal`: the queries are the last of their sequence's keys, and see no key behind themselves."""
        self.causal = causal
        self.longest_query, self.longest_key = max(query_lengths), max(key_lengths)
        self._device = device
        self._query_lengths, self._key_lengths = np.array(query_lengths), np.array(key_lengths)

    @cached_property
    def query_bounds(self) -> Tensor:
        """[S + 1], int32: sequence s has the queries from bounds[s] up to bounds[s + 1]."""
        return upload(_bounds(self._query_lengths).astype(np.int32), self._device)

    @cached_property
    def key_bounds(self) -> Tensor:
        """[S + 1], int32"""
        return upload(_bounds(self._key_lengths).astype(np.int32), self._device)

    @cached_property
    def buckets(self) -> list[Bucket]:
        order = np.lexsort((self._query_lengths, self._key_lengths))
        areas = self._query_lengths * self._key_lengths
        made: list[Bucket] = []
        start = 0
        while start < len(order):
            stop, needed = start, 0
            # Sorted by keys, then queries: the widest of a run has the most keys, not always the most queries.
            longest_query = longest_key = 0
            while stop < len(order):
                longest_query = max(longest_query, int(self._query_lengths[order[stop]]))
                longest_key = max(longest_key, int(self._key_lengths[order[stop]]))
                needed += int(areas[order[stop]])
                if longest_query * longest_key * (stop + 1 - start) > _PADDING_LIMIT * needed:
                    break
                stop += 1
            stop = max(stop, start + 1)
            made.append(self._bucket(order[start:stop]))
            start = stop
        return made

    def _bucket(self, chosen: Rows) -> Bucket:
        query_lengths, key_lengths = self._query_lengths[chosen][:, None], self._key_lengths[chosen][:, None]
        query = np.minimum(np.arange(query_lengths.max()), query_lengths - 1)
        key = np.arange(key_lengths.max())
        seen = np.broadcast_to((key < key_lengths)[:, None], (len(chosen), query.shape[1], len(key)))
        if self.causal:
            seen = seen & (key <= (key_lengths - query_lengths + query)[:, :, None])
        rows = (
            _bounds(self._query_lengths)[chosen][:, None] + query,
            _bounds(self._key_lengths)[chosen][:, None] + np.minimum(key, key_lengths - 1),
        )
        queries, keys = (torch.from_numpy(values).to(self._device) for values in rows)
        return Bucket(queries, keys, None if seen.all() else torch.from_numpy(seen[:, None].copy()).to(self._device))


def upload(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    """To a GPU from pinned memory: the copy waits its turn there, and this thread goes on."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def attend(query: Tensor, key: Tensor, value: Tensor, spans: Spans) -> Tensor:
    """softmax(query · key / √width) · value of each sequence → query's shape.

    query [Q, heads, width], key and value [K, key heads, width], where heads are a multiple of the key heads.
    On a GPU in half precision it is the flash attention that torch brings, which takes packed sequences as they are.
    """
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] % 8 == 0:
        return _flash_attention(query, key, value, spans)
    grouped = query.shape[1] != key.shape[1]
    mixed = torch.empty_like(query)
    for bucket in spans.buckets:
        q, k, v = (part.transpose(1, 2) for part in (query[bucket.queries], key[bucket.keys], value[bucket.keys]))
        found = scaled_dot_product_attention(q, k, v, attn_mask=bucket.seen, enable_gqa=grouped)
        mixed[bucket.queries] = found.transpose(1, 2)
    return mixed


def _flash_attention(query: Tensor, key: Tensor, value: Tensor, spans: Spans) -> Tensor:
    # torch.nn.attention.varlen takes fewer key heads than query heads from torch 2.12 on only; the operator below it always did.
    # Queries that are fewer than the keys are the last of them where it is causal.
    found = torch.ops.aten._flash_attention_forward(
        query, key, value, spans.query_bounds, spans.key_bounds, spans.longest_query, spans.longest_key,
        0.0, spans.causal, return_debug_mask=False,
    )  # fmt: skip
    return found[0]


def _bounds(lengths: Rows) -> Rows:
    return np.concatenate([[0], lengths.cumsum()])
