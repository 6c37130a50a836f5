"""Claims: which scorer on the database is making a score, so that the others leave it alone.

A claim saves work, it protects nothing: a score belongs to whoever commits it first, and `ScoreStore` ends all claims on a
key in the transaction that commits it. So a claim that is lost (its owner was held up longer than the expiry, or another
machine's clock runs ahead by more than the time left) costs one generation more, and never a score.
Times are `time.time()` of the machine that claims. A clock that is behind by s seconds leaves the claims of a dead scorer
standing s seconds longer in its own eyes.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable

from sqlalchemy import Connection, Engine, bindparam, delete, or_, select, tuple_, update

from leverplus.store.schema import score_claims
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

_row = score_claims.c
_ADDRESSED = (
    (_row.set_id == bindparam("at_set_id"))
    & (_row.query_id == bindparam("at_query_id"))
    & (_row.pointer == bindparam("at_pointer"))
    & (_row.kind == bindparam("at_kind"))
)


class ClaimStore:
    """Claims of one owner: a name that no other scorer on the database has."""

    def __init__(self, engine: Engine, owner: str) -> None:
        self._engine = engine
        self.owner = owner

    def claim(
        self, dataset_digest: str, generation_digest: str, kind: ScoreKind, keys: Collection[ScoreKey], *, expiry_s: float
    ) -> set[ScoreKey]:
        """Takes those of `keys` that nobody has, or whose claim has expired, and that are not committed; returns them.

        The claims end `expiry_s` seconds from now unless they are renewed.
        """
        if not keys:
            return set()
        now = time.time()
        with self._engine.begin() as connection:
            set_id = make_set(connection, dataset_digest, generation_digest)
            address = {"set_id": set_id, "kind": kind, "owner": self.owner, "expires_at": now + expiry_s}
            rows = [{**address, "query_id": query_id, "pointer": pointer} for query_id, pointer in addresses(keys)]
            insert = insert_into(connection, score_claims)
            statement = insert.on_conflict_do_update(
                index_elements=[_row.set_id, _row.query_id, _row.pointer, _row.kind],
                set_={"owner": insert.excluded.owner, "expires_at": insert.excluded.expires_at},
                where=or_(_row.expires_at <= now, _row.owner == self.owner),
            ).returning(_row.query_id, _row.pointer)
            won = {(row.query_id, row.pointer) for row in connection.execute(statement, rows)}
            # Whoever had a key may have committed it, and so ended its claim, just before this one was made.
            committed = _committed(connection, set_id, kind, sorted(won))
            end_claims(connection, set_id, kind, sorted(committed))
        return {key_at(*address) for address in won - committed}

    def renew(
        self, dataset_digest: str, generation_digest: str, kind: ScoreKind, keys: Iterable[ScoreKey], *, expiry_s: float
    ) -> None:
        """Own claims on `keys` end `expiry_s` seconds from now; what was lost stays lost."""
        statement = update(score_claims).where(_ADDRESSED, _row.owner == self.owner).values(expires_at=time.time() + expiry_s)
        with self._engine.begin() as connection:
            set_id = find_set(connection, dataset_digest, generation_digest)
            if set_id is not None and (rows := _parameters(set_id, kind, addresses(keys))):
                connection.execute(statement, rows)

    def release(self, dataset_digest: str, generation_digest: str, kind: ScoreKind, keys: Iterable[ScoreKey]) -> None:
        """Ends own claims on `keys`."""
        statement = delete(score_claims).where(_ADDRESSED, _row.owner == self.owner)
        with self._engine.begin() as connection:
            set_id = find_set(connection, dataset_digest, generation_digest)
            if set_id is not None and (rows := _parameters(set_id, kind, addresses(keys))):
                connection.execute(statement, rows)


def end_claims(connection: Connection, set_id: int, kind: ScoreKind, committed: list[tuple[int, str]]) -> None:
    """Ends claims, whosoever they are, on rows that are committed."""
    if committed:
        connection.execute(delete(score_claims).where(_ADDRESSED), _parameters(set_id, kind, committed))


def _parameters(set_id: int, kind: ScoreKind, rows: list[tuple[int, str]]) -> list[dict[str, int | str]]:
    return [{"at_set_id": set_id, "at_query_id": query_id, "at_pointer": pointer, "at_kind": kind} for query_id, pointer in rows]


def _committed(connection: Connection, set_id: int, kind: ScoreKind, rows: list[tuple[int, str]]) -> set[tuple[int, str]]:
    where = SCORE_COLUMNS[kind].table.c
    found: set[tuple[int, str]] = set()
    for start in range(0, len(rows), KEYS_PER_STATEMENT):
        some = rows[start : start + KEYS_PER_STATEMENT]
        statement = select(where.query_id, where.pointer).where(
            where.set_id == set_id,
            # See `ScoreStore._read`: without this SQLite reads every row of the set.
            where.query_id.in_({query_id for query_id, _ in some}),
            tuple_(where.query_id, where.pointer).in_(some),
        )
        found.update((query_id, pointer) for query_id, pointer in connection.execute(statement))
    return found
