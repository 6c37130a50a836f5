"""A score is made by one scorer at a time, and a scorer that is gone does not keep others from making it."""

from __future__ import annotations

import random
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, func, select, update

from leverplus.ids import ItemId
from leverplus.store import ClaimStore, ScoreKey, ScoreStore, open_store
from leverplus.store.schema import score_claims, scores


@pytest.fixture
def engine(database_url: str) -> Generator[Engine]:
    engine = open_store(database_url)
    yield engine
    engine.dispose()


def key(query: int, *pointer: int) -> ScoreKey:
    return ItemId(query), tuple(ItemId(item) for item in pointer)


ONE, TWO, THREE = key(1), key(1, 2), key(1, 2, 3)


def claimed(engine: Engine) -> dict[str, int]:
    with engine.connect() as connection:
        rows = connection.execute(select(score_claims.c.owner, func.count()).group_by(score_claims.c.owner))
        return dict(rows.tuples().all())


def expire(engine: Engine) -> None:
    """As if all claims had been made a minute earlier."""
    with engine.begin() as connection:
        connection.execute(update(score_claims).values(expires_at=score_claims.c.expires_at - 60))


def test_a_claim_keeps_others_off_until_it_is_released(engine: Engine) -> None:
    a, b = ClaimStore(engine, "a"), ClaimStore(engine, "b")
    assert a.claim("d", "g", "text", [ONE, TWO], expiry_s=30) == {ONE, TWO}
    assert b.claim("d", "g", "text", [TWO, THREE], expiry_s=30) == {THREE}
    assert a.claim("d", "g", "text", [ONE, TWO, THREE], expiry_s=30) == {ONE, TWO}
    b.release("d", "g", "text", [ONE, TWO, THREE])
    assert claimed(engine) == {"a": 2}
    a.release("d", "g", "text", [TWO])
    assert b.claim("d", "g", "text", [ONE, TWO], expiry_s=30) == {TWO}


def test_claims_are_of_one_kind_dataset_and_generation(engine: Engine) -> None:
    a, b = ClaimStore(engine, "a"), ClaimStore(engine, "b")
    assert a.claim("d", "g", "text", [ONE], expiry_s=30) == {ONE}
    assert b.claim("d", "g", "probabilities", [ONE], expiry_s=30) == {ONE}
    assert b.claim("d", "other", "text", [ONE], expiry_s=30) == {ONE}
    assert b.claim("other", "g", "text", [ONE], expiry_s=30) == {ONE}
    assert b.claim("d", "g", "text", [ONE], expiry_s=30) == set()


def test_an_expired_claim_is_taken_over_and_a_renewed_one_is_not(engine: Engine) -> None:
    a, b = ClaimStore(engine, "a"), ClaimStore(engine, "b")
    a.claim("d", "g", "text", [ONE, TWO], expiry_s=30)
    expire(engine)
    a.renew("d", "g", "text", [TWO], expiry_s=30)
    assert b.claim("d", "g", "text", [ONE, TWO], expiry_s=30) == {ONE}
    # What was lost is not had back by renewing or releasing.
    a.renew("d", "g", "text", [ONE, TWO], expiry_s=30)
    a.release("d", "g", "text", [ONE])
    assert claimed(engine) == {"a": 1, "b": 1}
    assert a.claim("d", "g", "text", [ONE], expiry_s=30) == set()


def test_a_committed_score_has_no_claim_and_gets_none(engine: Engine) -> None:
    a, b, store = ClaimStore(engine, "a"), ClaimStore(engine, "b"), ScoreStore(engine)
    a.claim("d", "g", "text", [ONE, TWO], expiry_s=30)
    a.claim("d", "g", "probabilities", [ONE], expiry_s=30)
    store.commit("d", "g", {ONE: "red"})
    assert claimed(engine) == {"a": 2}
    assert b.claim("d", "g", "text", [ONE, THREE], expiry_s=30) == {THREE}
    store.commit_probabilities("d", "g", {ONE: {"red": 1.0}})
    assert b.claim("d", "g", "probabilities", [ONE], expiry_s=30) == set()
    assert claimed(engine) == {"a": 1, "b": 1}


def test_whoever_commits_first_ends_the_claim_of_the_one_that_took_over(engine: Engine) -> None:
    a, b, store = ClaimStore(engine, "a"), ClaimStore(engine, "b"), ScoreStore(engine)
    a.claim("d", "g", "text", [ONE], expiry_s=30)
    expire(engine)
    assert b.claim("d", "g", "text", [ONE], expiry_s=30) == {ONE}
    store.commit("d", "g", {ONE: "of a"})
    assert claimed(engine) == {}
    store.commit("d", "g", {ONE: "of b"})
    assert store.committed("d", "g", [ONE]) == {ONE: "of a"}


def test_many_keys_are_claimed_renewed_and_released_in_parts(engine: Engine) -> None:
    store = ClaimStore(engine, "a")
    keys = [key(query, 7) for query in range(1_000)]
    assert store.claim("d", "g", "text", keys, expiry_s=30) == set(keys)
    store.renew("d", "g", "text", keys, expiry_s=30)
    assert claimed(engine) == {"a": 1_000}
    store.release("d", "g", "text", keys)
    assert claimed(engine) == {}


def test_nothing_is_claimed_or_renewed_of_nothing(engine: Engine) -> None:
    store = ClaimStore(engine, "a")
    store.renew("d", "g", "text", [ONE], expiry_s=30)
    store.release("d", "g", "text", [ONE])
    assert store.claim("d", "g", "text", [], expiry_s=30) == set()
    store.renew("d", "g", "text", [], expiry_s=30)
    assert claimed(engine) == {}


@pytest.mark.parametrize("expired", [False, True])
def test_of_racing_claimers_one_wins(engine: Engine, expired: bool) -> None:
    owners = [ClaimStore(engine, f"owner-{number}") for number in range(4)]
    together = threading.Barrier(len(owners))

    def race(owner: ClaimStore, turn: int) -> set[ScoreKey]:
        keys = [key(turn, item) for item in range(20)]
        random.Random(owner.owner).shuffle(keys)
        together.wait(30)
        return owner.claim("d", "g", "text", keys, expiry_s=30)

    with ThreadPoolExecutor(len(owners)) as pool:
        for turn in range(10):
            if expired:
                ClaimStore(engine, "gone").claim("d", "g", "text", [key(turn, item) for item in range(20)], expiry_s=0)
            won = list(pool.map(race, owners, [turn] * len(owners)))
            assert sum(map(len, won)) == 20
            assert len(set.union(*won)) == 20


def test_claims_and_commits_of_the_same_keys_in_any_order_end(engine: Engine) -> None:
    """On PostgreSQL two transactions that lock the same rows in opposite orders are a deadlock, of which one is ended with an
    error; on SQLite one that reads before it writes fails when another has written in between."""
    together = threading.Barrier(4)
    store = ScoreStore(engine)

    def work(number: int) -> None:
        draw = random.Random(number)
        claims = ClaimStore(engine, f"owner-{number}")
        for turn in range(20):
            keys = [key(turn, item) for item in range(40)]
            draw.shuffle(keys)
            together.wait(30)
            claims.claim("d", "g", "text", keys, expiry_s=draw.choice([0, 30]))
            claims.renew("d", "g", "text", keys, expiry_s=30)
            if draw.random() < 0.3:
                claims.release("d", "g", "text", keys)
            store.commit("d", "g", dict.fromkeys(keys, f"of {number}"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert store.count() == 20 * 40
    assert claimed(engine) == {}
    with engine.connect() as connection:
        # A transaction's rows are one scorer's own.
        texts = select(func.count(func.distinct(scores.c.raw_text))).group_by(scores.c.query_id)
        assert set(connection.execute(texts).scalars()) == {1}
