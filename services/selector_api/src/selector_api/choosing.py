"""The trained selector over the candidates of one checkpoint, for many queries at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from leverplus.embeddings import Embeddings
from leverplus.errors import LeverPlusError
from leverplus.policies import Choice, PreparedCandidates, SelectorPolicy
from leverplus.pools import Ids, Vector
from leverplus.prefilter import Prefilter

_PREPARED_BYTES = 1024 * 1024 * 1024
"""More candidates than fit here are projected when they are asked for. 1 KiB each at the usual width of 256."""

_NUMBERS_AT_ONCE = 4_000_000
"""Floats that one call of the selector may make of candidates: 16 MB."""
_QUERIES_AT_ONCE = 16


class Asked(NamedTuple):
    """A query, an item or the vector [d] of something else, and the item ids [K] of its pool."""

    item_id: int | None
    vector: Vector | None
    pool: Ids


class Sought(NamedTuple):
    """A query as in Asked, and the candidates' ids [m] that it must not be given."""

    item_id: int | None
    vector: Vector | None
    left_out: Ids


class Chosen(NamedTuple):
    pointer: list[int]
    step_logprobs: tuple[float, ...]


class Chooser:
    """Holds what the selector makes of each candidate. Safe to share between threads.

    `candidates`: the ids [N] that pools are made of. `whole`: a pool is all of them but a few, in their order; then queries share
    one matrix, with rows that are closed to them.
    """

    def __init__(self, policy: SelectorPolicy, embeddings: Embeddings, candidates: Ids, *, whole: bool) -> None:
        self._policy = policy
        self._embeddings = embeddings
        self._candidates = candidates
        self._rows = np.full(int(candidates.max(initial=-1)) + 1, -1, dtype=np.int64)
        self._rows[candidates] = np.arange(len(candidates))
        fits = len(candidates) * policy.config.hidden_dim * 4 <= _PREPARED_BYTES
        self._prepared, self._known = policy.prepare_rows(embeddings.candidate, candidates) if fits else (None, None)
        self._whole = whole and self._prepared is not None

    def choose(self, asked: Sequence[Asked], shots: int, beam: int) -> list[Chosen | LeverPlusError]:
        """The best pointer of each, or why there is none."""
        found: list[Chosen | LeverPlusError] = [LeverPlusError("not asked")] * len(asked)
        for indices in self._parts(asked):
            part = [asked[index] for index in indices]
            for index, outcome in zip(indices, self._of_part(part, shots, beam), strict=True):
                found[index] = outcome
        return found

    def candidates_among(self, ids: Ids) -> Ids:
        """Those of ids [m] that are candidates."""
        ids = ids[ids < len(self._rows)]
        return ids[self._rows[ids] >= 0]

    def choose_among_nearest(self, prefilter: Prefilter, sought: Sought, shots: int, beam: int) -> tuple[Ids, Chosen]:
        """The ids that the prefilter hands on, and the best pointer among them. Looks at no other candidate."""
        vector = self._vector(sought)
        rows, choice = prefilter.choose(vector, self._take, shots, beam, left_out=self._rows[sought.left_out])
        ids = self._candidates[rows]
        return ids, _chosen(ids, choice)

    def _take(self, rows: Ids) -> PreparedCandidates:
        if self._prepared is not None:
            return self._prepared.take(rows)
        return self._policy.prepare(self._embeddings.candidate[self._candidates[rows]])

    def _parts(self, asked: Sequence[Asked]) -> Iterator[list[int]]:
        """Indices of those that one call of the selector takes: pools of one size, or of the one matrix."""
        sizes: dict[int, list[int]] = {}
        for index, one in enumerate(asked):
            sizes.setdefault(0 if self._whole else len(one.pool), []).append(index)
        for size, indices in sizes.items():
            numbers = len(self._candidates) if self._whole else size * self._policy.config.hidden_dim
            at_once = 1 if self._prepared is None else max(1, min(_QUERIES_AT_ONCE, _NUMBERS_AT_ONCE // max(1, numbers)))
            for start in range(0, len(indices), at_once):
                yield indices[start : start + at_once]

    def _of_part(self, part: list[Asked], shots: int, beam: int) -> list[Chosen | LeverPlusError]:
        try:
            return list(self._at_once(part, shots, beam))
        except LeverPlusError as exc:
            # One query's numbers are no reason to refuse the others.
            return [exc] if len(part) == 1 else [self._of_part([one], shots, beam)[0] for one in part]

    def _at_once(self, part: list[Asked], shots: int, beam: int) -> list[Chosen]:
        queries = np.stack([self._vector(one) for one in part])
        if self._prepared is None or self._known is None:
            (one,) = part
            prepared = self._policy.prepare(self._embeddings.candidate[self._embeddings.require(one.pool)])
            return [_chosen(one.pool, self._policy.choose_many(queries, prepared, shots, beam)[0][0])]
        if self._whole:
            closed = np.ones((len(part), len(self._candidates)), dtype=np.bool_)
            for row, one in enumerate(part):
                closed[row, self._rows[one.pool]] = False
            for one in part:
                self._require(one.pool, self._known if len(one.pool) == len(self._known) else self._known[self._rows[one.pool]])
            beams = self._policy.choose_many(queries, self._prepared, shots, beam, closed if closed.any() else None)
            return [_chosen(self._candidates, choices[0]) for choices in beams]
        rows = self._rows[np.stack([one.pool for one in part])]
        for one, known in zip(part, self._known[rows], strict=True):
            self._require(one.pool, known)
        beams = self._policy.choose_many(queries, self._prepared.take(rows), shots, beam)
        return [_chosen(one.pool, choices[0]) for one, choices in zip(part, beams, strict=True)]

    def _vector(self, one: Asked | Sought) -> Vector:
        if one.item_id is None:
            assert one.vector is not None
            return one.vector
        vector = self._embeddings.query[one.item_id]
        if not np.isfinite(vector).all():
            self._embeddings.require([one.item_id])
        return vector

    def _require(self, pool: Ids, known: npt.NDArray[np.bool_]) -> None:
        if not known.all():
            self._embeddings.require(pool)


def _chosen(ids: Ids, choice: Choice) -> Chosen:
    return Chosen(ids[list(choice.positions)].tolist(), choice.step_logprobs)
