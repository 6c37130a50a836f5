"""How the rows of scores and of claims on them are addressed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from sqlalchemy import Connection, Table, select
from sqlalchemy.dialects import postgresql, sqlite

from leverplus.ids import ItemId, Pointer
from leverplus.store.schema import answer_probabilities, score_sets, scores

ScoreKey = tuple[ItemId, Pointer]
ScoreKind = Literal["text", "probabilities"]

SCORE_COLUMNS = {"text": scores.c.raw_text, "probabilities": answer_probabilities.c.probabilities}
"""Where scores of each kind are; the column's table has one row a key."""

KEYS_PER_STATEMENT = 400
"""SQLite allows 32,766 bound values in a statement, and short statements are parsed faster."""


def addresses(keys: Iterable[ScoreKey]) -> list[tuple[int, str]]:
    """(query_id, pointer) of the keys' rows, in the one order in which rows are written: two transactions that lock the same
    rows in different orders wait for each other for ever, until PostgreSQL ends one of them."""
    return sorted({(query_id, ",".join(map(str, pointer))) for query_id, pointer in keys})


def key_at(query_id: int, pointer: str) -> ScoreKey:
    return ItemId(query_id), tuple(ItemId(int(part)) for part in pointer.split(",")) if pointer else ()


def find_set(connection: Connection, dataset_digest: str, generation_digest: str) -> int | None:
    return connection.execute(
        select(score_sets.c.id).where(
            score_sets.c.dataset_digest == dataset_digest, score_sets.c.generation_digest == generation_digest
        )
    ).scalar_one_or_none()


def make_set(connection: Connection, dataset_digest: str, generation_digest: str) -> int:
    """The set's id, of a new row where there is none. On SQLite this makes the transaction the one that writes."""
    values = {"dataset_digest": dataset_digest, "generation_digest": generation_digest}
    connection.execute(insert_into(connection, score_sets).values(values).on_conflict_do_nothing())
    set_id = find_set(connection, dataset_digest, generation_digest)
    assert set_id is not None, "the row was inserted above, or by another transaction that has ended"
    return set_id


def insert_into(connection: Connection, table: Table) -> Any:
    """The dialect's insert, which knows what to do on conflict."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)
