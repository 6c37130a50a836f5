"""What the answers phase trains on: queries, pools drawn anew for every batch, and which words of a query's own answer its
pool's items would tell. No VLM is asked, so that every item with a known answer can be a query."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leverplus.dataset import Dataset
from leverplus.embeddings import Embeddings
from leverplus.errors import InvalidConfig
from leverplus.ids import ItemId
from leverplus.pools import Pools
from pointer_trainer.candidates import answer_words
from pointer_trainer.example_table import EmbeddingRows

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

POOL = 256
"""Items of a batch's pool, or all candidates where there are fewer: more of them, more that a query has to be told from."""
_WORDS = 8
"""Of a longer answer the first ones, by the alphabet, count."""
_NONE = -1


@dataclass(frozen=True, slots=True)
class AnswerBatch:
    """B queries over one pool of K items. `told`: which of the A words of each query's answer each item's answer holds."""

    query_emb: Float[Tensor, "B d"]
    pool_emb: Float[Tensor, "K d"]
    asked: Bool[Tensor, "B A"]
    told: Bool[Tensor, "B K A"]
    open: Bool[Tensor, "B K"]
    """False for the query itself and for items of its image."""


class AnswerTable:
    """`examples` [Q]: the item ids that are queries; those without a known answer and those in or beside `held_out` are none."""

    def __init__(
        self,
        pools: Pools,
        embeddings: Embeddings,
        queries: Sequence[ItemId],
        held_out: Sequence[ItemId],
        shots: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """`queries`: of the RL data; every candidate of `pools` is one too. `shots`: steps that the phase trains.

        Raises InvalidConfig where no query is left, or fewer candidates than `shots` and one of another image.
        """
        dataset = pools.dataset
        self.device = torch.device(device)
        self.shots = shots
        self._pool = pools.candidates
        hidden_images = {dataset.item(item_id).image_id for item_id in held_out}
        asked = sorted({*queries, *(ItemId(int(item_id)) for item_id in self._pool)})
        self.examples = [
            item_id
            for item_id in asked
            if (item := dataset.item(item_id)).image_id not in hidden_images and answer_words(item.answer)
        ]
        if not self.examples:
            raise InvalidConfig(field="answer_epochs", reason=f"none of {len(asked)} items has a known answer; leave it out")
        if len(self._pool) <= shots:
            raise InvalidConfig(field="answer_epochs", reason=f"{len(self._pool)} candidates are too few for {shots} shots")
        self._query_ids = np.array(self.examples, dtype=np.int64)
        every = np.union1d(self._query_ids, self._pool)
        self._place = {int(item_id): row for row, item_id in enumerate(every)}
        self._words = _numbered([answer_words(dataset.item(ItemId(int(item_id))).answer) for item_id in every])
        images = {image: number for number, image in enumerate(dict.fromkeys(_image(dataset, item) for item in every))}
        self._images = np.array([images[_image(dataset, item)] for item in every])
        self._query = EmbeddingRows(embeddings.query, self.device)
        self._candidate = EmbeddingRows(embeddings.candidate, self.device)

    def __len__(self) -> int:
        return len(self.examples)

    def batches(self, size: int, order: NDArray[np.int64], generator: np.random.Generator) -> Iterator[AnswerBatch]:
        """The queries of `order`, `size` at a time, over a pool that `generator` draws for each batch."""
        for start in range(0, len(order), size):
            pool = generator.choice(self._pool, min(POOL, len(self._pool)), replace=False)
            yield self._batch(self._query_ids[order[start : start + size]], pool)

    def _batch(self, queries: NDArray[np.int64], pool: NDArray[np.int64]) -> AnswerBatch:
        rows, columns = ([self._place[item_id] for item_id in ids.tolist()] for ids in (queries, pool))
        wanted, offered = self._words[rows], self._words[columns]
        asked = wanted != _NONE
        told = (wanted[:, None, :, None] == offered[None, :, None, :]).any(-1) & asked[:, None]
        elsewhere = self._images[rows][:, None] != self._images[columns][None]
        told, asked, elsewhere = (torch.from_numpy(part).to(self.device) for part in (told, asked, elsewhere))
        query_emb, pool_emb = (
            table.take(torch.from_numpy(ids).to(self.device)) for table, ids in ((self._query, queries), (self._candidate, pool))
        )
        return AnswerBatch(query_emb, pool_emb, asked, told & elsewhere[:, :, None], elsewhere)


def _image(dataset: Dataset, item_id: int) -> str:
    return dataset.item(ItemId(int(item_id))).image_id


def _numbered(answers: Sequence[frozenset[str]]) -> NDArray[np.int32]:
    """[N, A] a number for each word, -1 behind the last."""
    numbers: dict[str, int] = {}
    rows = [[numbers.setdefault(word, len(numbers)) for word in sorted(words)[:_WORDS]] for words in answers]
    table = np.full((len(rows), max(1, *map(len, rows), 1)), _NONE, dtype=np.int32)
    for row, words in zip(table, rows, strict=True):
        row[: len(words)] = words
    return table
