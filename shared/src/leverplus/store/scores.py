"""Committed scores: what the VLM wrote for a (dataset, generation, query, pointer), once and for good."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, func, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from leverplus.ids import ItemId, Pointer
from leverplus.store.schema import score_sets, scores

ScoreKey = tuple[ItemId, Pointer]

_KEYS_PER_STATEMENT = 400
"""Two bound values a key; SQLite allows 32,766 in a statement, and short statements are parsed faster."""


class ScoreStore:
    """Scores are added and read, never changed: the first text committed for a key stays."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def committed(self, dataset_digest: str, generation_digest: str, keys: Sequence[ScoreKey]) -> dict[ScoreKey, str]:
        """Raw texts of those of `keys` that are committed."""
        found: dict[ScoreKey, str] = {}
        with self._engine.connect() as connection:
            set_id = _find_set(connection, dataset_digest, generation_digest)
            if set_id is None:
                return found
            for start in range(0, len(keys), _KEYS_PER_STATEMENT):
                chunk = keys[start : start + _KEYS_PER_STATEMENT]
                wanted = [(query_id, _join(pointer)) for query_id, pointer in chunk]
                statement = select(scores.c.query_id, scores.c.pointer, scores.c.raw_text).where(
                    scores.c.set_id == set_id, tuple_(scores.c.query_id, scores.c.pointer).in_(wanted)
                )
                for query_id, pointer, raw_text in connection.execute(statement):
                    found[ItemId(query_id), _split(pointer)] = raw_text
        return found

    def commit(self, dataset_digest: str, generation_digest: str, rows: Mapping[ScoreKey, str]) -> None:
        """Commits all rows in one transaction; a key that is there already keeps its text."""
        if not rows:
            return
        now = time.time()
        with self._engine.begin() as connection:
            set_id = self._make_set(connection, dataset_digest, generation_digest)
            values = [
                {"set_id": set_id, "query_id": query_id, "pointer": _join(pointer), "raw_text": text, "committed_at": now}
                for (query_id, pointer), text in rows.items()
            ]
            connection.execute(self._insert(scores).on_conflict_do_nothing(), values)

    def count(self) -> int:
        """Committed scores over all datasets and generations."""
        with self._engine.connect() as connection:
            return connection.execute(select(func.count()).select_from(scores)).scalar_one()

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
