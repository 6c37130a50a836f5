"""Committed scores: what the VLM wrote for a (dataset, generation, query, pointer), and how likely it was to give each of
the query's answers; once and for good."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, func, select, tuple_

from leverplus.errors import Unavailable
from leverplus.store.claims import ClaimStore, end_claims
from leverplus.store.schema import scores
from leverplus.store.score_rows import (
    KEYS_PER_STATEMENT,
    SCORE_COLUMNS,
    ScoreKey,
    ScoreKind,
    addresses,
    find_set,
    insert_into,
    key_at,
    make_set,
)


class ScoreStore:
    """Scores are added and read, never changed: what was committed first for a key stays."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._file = _file_of(engine)
        self._inode = self._file.stat().st_ino if self._file is not None else None

    @property
    def name(self) -> str:
        """The database, without a password."""
        return self._engine.url.render_as_string(hide_password=True)

    def require_file(self) -> None:
        """Unavailable where SQLite's file was deleted or replaced: what is open would be written to a file that nobody finds."""
        if self._file is None:
            return
        try:
            inode = self._file.stat().st_ino
        except OSError:
            inode = None
        if inode != self._inode:
            reason = f"{self._file} was deleted or replaced while it was open"
            raise Unavailable(what="the score database", reason=reason, hint="put it back if you can, and start the scorer again")

    def committed(self, dataset_digest: str, generation_digest: str, keys: Sequence[ScoreKey]) -> dict[ScoreKey, str]:
        """Raw texts of those of `keys` that are committed."""
        return self._read("text", dataset_digest, generation_digest, keys)

    def commit(self, dataset_digest: str, generation_digest: str, rows: Mapping[ScoreKey, str]) -> None:
        """Commits all rows and ends all claims on them in one transaction; a key that is there already keeps its text."""
        self._write("text", dataset_digest, generation_digest, rows)

    def committed_probabilities(
        self, dataset_digest: str, generation_digest: str, keys: Sequence[ScoreKey]
    ) -> dict[ScoreKey, dict[str, float]]:
        """Answer -> P of those of `keys` that are committed."""
        return self._read("probabilities", dataset_digest, generation_digest, keys)

    def commit_probabilities(
        self, dataset_digest: str, generation_digest: str, rows: Mapping[ScoreKey, Mapping[str, float]]
    ) -> None:
        """Commits P of all of a query's answers for each key, as `commit` does its texts."""
        values = {key: dict(probabilities) for key, probabilities in rows.items()}
        self._write("probabilities", dataset_digest, generation_digest, values)

    def claims(self, owner: str) -> ClaimStore:
        """Claims of `owner` on scores of this database."""
        return ClaimStore(self._engine, owner)

    def count(self) -> int:
        """Committed scores over all datasets and generations."""
        with self._engine.connect() as connection:
            return connection.execute(select(func.count()).select_from(scores)).scalar_one()

    def _read(
        self, kind: ScoreKind, dataset_digest: str, generation_digest: str, keys: Sequence[ScoreKey]
    ) -> dict[ScoreKey, Any]:
        self.require_file()
        found: dict[ScoreKey, Any] = {}
        column = SCORE_COLUMNS[kind]
        where = column.table.c
        wanted = addresses(keys)
        with self._engine.connect() as connection:
            set_id = find_set(connection, dataset_digest, generation_digest)
            if set_id is None:
                return found
            for start in range(0, len(wanted), KEYS_PER_STATEMENT):
                some = wanted[start : start + KEYS_PER_STATEMENT]
                statement = select(where.query_id, where.pointer, column).where(
                    where.set_id == set_id,
                    # SQLite looks pairs up in no index: by the queries it reads theirs, not every row of the set.
                    where.query_id.in_({query_id for query_id, _ in some}),
                    tuple_(where.query_id, where.pointer).in_(some),
                )
                for query_id, pointer, value in connection.execute(statement):
                    found[key_at(query_id, pointer)] = value
        return found

    def _write(self, kind: ScoreKind, dataset_digest: str, generation_digest: str, rows: Mapping[ScoreKey, Any]) -> None:
        if not rows:
            return
        self.require_file()
        now = time.time()
        column = SCORE_COLUMNS[kind]
        written = addresses(rows)
        with self._engine.begin() as connection:
            set_id = make_set(connection, dataset_digest, generation_digest)
            values = [
                {
                    "set_id": set_id,
                    "query_id": query_id,
                    "pointer": pointer,
                    column.name: rows[key_at(query_id, pointer)],
                    "committed_at": now,
                }
                for query_id, pointer in written
            ]
            connection.execute(insert_into(connection, column.table).on_conflict_do_nothing(), values)
            end_claims(connection, set_id, kind, written)


def _file_of(engine: Engine) -> Path | None:
    database = engine.url.database
    return Path(database) if engine.dialect.name == "sqlite" and database and database != ":memory:" else None
