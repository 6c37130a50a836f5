"""Committed scores: what the VLM wrote for a (dataset, generation, query, pointer), and how likely it was to give each of
the query's answers; once and for good."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Column, Connection, Engine, func, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from leverplus.ids import ItemId, Pointer
from leverplus.store.schema import answer_probabilities, score_sets, scores

ScoreKey = tuple[ItemId, Pointer]

_KEYS_PER_STATEMENT = 400
"""Two bound values a key; SQLite allows 32,766 in a statement, and short statements are parsed faster."""


class ScoreStore:
    """Scores are added and read, never changed: what was committed first for a key stays."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def committed(self, dataset_digest: str, generation_digest: str, keys: Sequence[ScoreKey]) -> dict[ScoreKey, str]:
        """Raw texts of those of `keys` that are committed."""
        return self._read(scores.c.raw_text, dataset_digest, generation_digest, keys)

    def commit(self, dataset_digest: str, generation_digest: str, rows: Mapping[ScoreKey, str]) -> None:
        """Commits all rows in one transaction; a key that is there already keeps its text."""
        self._write(scores.c.raw_text, dataset_digest, generation_digest, rows)

    def committed_probabilities(
        self, dataset_digest: str, generation_digest: str, keys: Sequence[ScoreKey]
    ) -> dict[ScoreKey, dict[str, float]]:
        """Answer -> P of those of `keys` that are committed."""
        return self._read(answer_probabilities.c.probabilities, dataset_digest, generation_digest, keys)

    def commit_probabilities(
        self, dataset_digest: str, generation_digest: str, rows: Mapping[ScoreKey, Mapping[str, float]]
    ) -> None:
        """Commits P of all of a query's answers for each key, in one transaction; a key that is there already keeps its own."""
        values = {key: dict(probabilities) for key, probabilities in rows.items()}
        self._write(answer_probabilities.c.probabilities, dataset_digest, generation_digest, values)

    def count(self) -> int:
        """Committed scores over all datasets and generations."""
        with self._engine.connect() as connection:
            return connection.execute(select(func.count()).select_from(scores)).scalar_one()

    def _read(
        self, column: Column[Any], dataset_digest: str, generation_digest: str, keys: Sequence[ScoreKey]
    ) -> dict[ScoreKey, Any]:
        found: dict[ScoreKey, Any] = {}
        where = column.table.c
        with self._engine.connect() as connection:
            set_id = _find_set(connection, dataset_digest, generation_digest)
            if set_id is None:
                return found
            for start in range(0, len(keys), _KEYS_PER_STATEMENT):
                wanted = [(query_id, _join(pointer)) for query_id, pointer in keys[start : start + _KEYS_PER_STATEMENT]]
                statement = select(where.query_id, where.pointer, column).where(
                    where.set_id == set_id,
                    # SQLite looks pairs up in no index: by the queries it reads theirs, not every row of the set.
                    where.query_id.in_({query_id for query_id, _ in wanted}),
                    tuple_(where.query_id, where.pointer).in_(wanted),
                )
                for query_id, pointer, value in connection.execute(statement):
                    found[ItemId(query_id), _split(pointer)] = value
        return found

    def _write(self, column: Column[Any], dataset_digest: str, generation_digest: str, rows: Mapping[ScoreKey, Any]) -> None:
        if not rows:
            return
        now = time.time()
        with self._engine.begin() as connection:
            set_id = self._make_set(connection, dataset_digest, generation_digest)
            values = [
                {"set_id": set_id, "query_id": query_id, "pointer": _join(pointer), column.name: value, "committed_at": now}
                for (query_id, pointer), value in rows.items()
            ]
            connection.execute(self._insert(column.table).on_conflict_do_nothing(), values)

    def _make_set(self, connection: Connection, dataset_digest: str, generation_digest: str) -> int:
        values = {"dataset_digest": dataset_digest, "generation_digest": generation_digest}
        connection.execute(self._insert(score_sets).values(values).on_conflict_do_nothing())
        set_id = _find_set(connection, dataset_digest, generation_digest)
        assert set_id is not None, "the row was inserted above, or by another transaction that has ended"
        return set_id

    def _insert(self, table: Any) -> Any:
        return postgresql.insert(table) if self._engine.dialect.name == "postgresql" else sqlite.insert(table)


def _find_set(connection: Connection, dataset_digest: str, generation_digest: str) -> int | None:
    return connection.execute(
        select(score_sets.c.id).where(
            score_sets.c.dataset_digest == dataset_digest, score_sets.c.generation_digest == generation_digest
        )
    ).scalar_one_or_none()


def _join(pointer: Pointer) -> str:
    return ",".join(map(str, pointer))


def _split(text: str) -> Pointer:
    return tuple(ItemId(int(part)) for part in text.split(",")) if text else ()
