"""Scores are committed once and for good; a lease has one holder."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Engine, create_engine, event, insert, text, update
from sqlalchemy.exc import IntegrityError

import leverplus.store
from leverplus.data_root import DataRoot
from leverplus.errors import Conflict, InvalidConfig, NotFound, Unavailable
from leverplus.ids import ItemId
from leverplus.store import JobStore, LeaseLost, ScoreStore, open_store
from leverplus.store.schema import jobs, metadata, score_sets, scores


@pytest.fixture
def engine(database_url: str):
    engine = open_store(database_url)
    yield engine
    engine.dispose()


def key(query: int, *pointer: int):
    return ItemId(query), tuple(ItemId(item) for item in pointer)


def age_heartbeat(engine: Engine, job_id: str, seconds: float) -> None:
    with engine.begin() as connection:
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(heartbeat_at=jobs.c.heartbeat_at - seconds))


def test_migrations_give_the_tables_of_the_schema(engine: Engine):
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_scores_outlive_the_step_to_a_newer_schema(database_url: str):
    config = Config()
    config.set_main_option("script_location", str(Path(leverplus.store.__file__).parent / "migrations"))
    old = create_engine(database_url)
    with old.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(insert(score_sets).values(id=1, dataset_digest="d", generation_digest="g"))
        row = {"set_id": 1, "query_id": 1, "pointer": "2", "raw_text": "red", "committed_at": 0.0}
        connection.execute(insert(scores).values(row))
    old.dispose()
    engine = open_store(database_url)
    store = ScoreStore(engine)
    assert store.committed("d", "g", [key(1, 2)]) == {key(1, 2): "red"}
    assert store.committed_probabilities("d", "g", [key(1, 2)]) == {}
    engine.dispose()


def test_opening_again_or_at_once_is_harmless(database_url: str):
    with ThreadPoolExecutor(8) as pool:
        engines = list(pool.map(open_store, [database_url] * 8))
    for engine in engines:
        engine.dispose()


def test_database_url_faults_are_named(tmp_path: Path):
    with pytest.raises(InvalidConfig, match="not a database URL"):
        open_store("postgresql://me:secret@127.0.0.1:port/x")
    with pytest.raises(InvalidConfig, match="not a database URL"):
        open_store("nonsense")
    with pytest.raises(InvalidConfig, match="mysql"):
        open_store("mysql://somewhere/db")
    (tmp_path / "folder").mkdir()
    with pytest.raises(Unavailable, match="database"):
        open_store(f"sqlite:///{tmp_path / 'folder'}")
    (tmp_path / "file").write_text("x")
    with pytest.raises(Unavailable, match="file: File exists"):
        open_store(f"sqlite:///{tmp_path / 'file' / 'store.sqlite'}")


def test_a_damaged_file_and_the_way_out_are_named(tmp_path: Path):
    path = tmp_path / "store.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(Unavailable, match=r"store\.sqlite: file is not a database; put back a copy, or move it away"):
        open_store(f"sqlite:///{path}")


def test_scores_come_back_by_ordered_pointer(engine: Engine):
    store = ScoreStore(engine)
    store.commit("d", "g", {key(3, 1, 2): "red", key(3, 2, 1): "blue", key(3): ""})
    wanted = [key(3, 1, 2), key(3, 2, 1), key(3), key(3, 1), key(4, 1, 2)]
    assert store.committed("d", "g", wanted) == {key(3, 1, 2): "red", key(3, 2, 1): "blue", key(3): ""}
    assert store.committed("d", "other", wanted) == {}
    assert store.count() == 3


def test_the_first_committed_text_stays(engine: Engine):
    store = ScoreStore(engine)
    store.commit("d", "g", {key(1, 2): "first"})
    store.commit("d", "g", {key(1, 2): "second", key(1, 3): "new"})
    assert store.committed("d", "g", [key(1, 2), key(1, 3)]) == {key(1, 2): "first", key(1, 3): "new"}


def test_probabilities_are_apart_from_texts_and_the_first_stay(engine: Engine):
    store = ScoreStore(engine)
    store.commit_probabilities("d", "g", {key(1, 2): {"red": 0.1 + 0.2, "blau\u00e4": 1e-300}, key(1): {"red": 0.5}})
    store.commit_probabilities("d", "g", {key(1): {"red": 0.6}, key(1, 3): {}})
    found = store.committed_probabilities("d", "g", [key(1, 2), key(1), key(1, 3), key(2)])
    assert found == {key(1, 2): {"red": 0.1 + 0.2, "blau\u00e4": 1e-300}, key(1): {"red": 0.5}, key(1, 3): {}}
    assert store.committed("d", "g", [key(1, 2), key(1)]) == {}
    assert store.committed_probabilities("d", "other", [key(1)]) == {}


def test_many_keys_are_looked_up_in_parts(engine: Engine):
    store = ScoreStore(engine)
    rows = {key(query, 7): str(query) for query in range(1_000)}
    store.commit("d", "g", rows)
    assert store.committed("d", "g", list(rows)) == rows


def test_a_lookup_reads_the_rows_of_its_queries_not_the_whole_set(tmp_path: Path):
    """It was slower the more was committed: 20 ms for 32 keys among 96,000, where it is 1 ms now."""
    engine = open_store(f"sqlite:///{tmp_path / 'store.sqlite'}")
    store = ScoreStore(engine)
    store.commit("d", "g", {key(query, 7): "red" for query in range(3)})
    asked: list[tuple[str, Any]] = []

    @event.listens_for(engine, "before_cursor_execute")
    def _remember(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        asked.append((statement, parameters))

    assert store.committed("d", "g", [key(1, 7), key(2, 7)]) == {key(1, 7): "red", key(2, 7): "red"}
    statement, parameters = asked[-1]
    with engine.connect() as connection:
        plan = " ".join(row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters))
    assert "set_id=? AND query_id=?" in plan
    engine.dispose()


def test_a_database_file_that_is_gone_takes_no_scores(tmp_path: Path):
    file = tmp_path / "store.sqlite"
    engine = open_store(f"sqlite:///{file}")
    store = ScoreStore(engine)
    store.commit("d", "g", {key(1, 7): "red"})
    file.rename(tmp_path / "moved.sqlite")
    for attempt in (
        store.require_file,
        lambda: store.commit("d", "g", {key(2, 7): "red"}),
        lambda: store.committed("d", "g", []),
    ):
        with pytest.raises(Unavailable, match="deleted or replaced"):
            attempt()
    (tmp_path / "moved.sqlite").rename(file)
    assert store.committed("d", "g", [key(1, 7)]) == {key(1, 7): "red"}
    engine.dispose()


def test_a_job_has_one_lease_at_a_time(engine: Engine):
    store = JobStore(engine)
    job = store.create("train", {"seed": 1})
    first = store.claim(job.id, "one")
    assert first is not None
    assert first.version == 1
    assert store.claim(job.id, "two") is None
    age_heartbeat(engine, job.id, 20)
    second = store.claim(job.id, "two")
    assert second is not None
    assert second.version == 2
    for write in (lambda: store.beat(first), lambda: store.progress(first, "rce", 1, 5), lambda: store.finish(first, "failed")):
        with pytest.raises(LeaseLost):
            write()
    store.progress(second, "rce", 2, 5, 1.5, {"loss": 0.3})
    store.finish(second, "succeeded", result={"checkpoint": "c"})
    done = store.get(job.id)
    assert (done.status, done.result) == ("succeeded", {"checkpoint": "c"})
    assert done.progress == {"phase": "rce", "step": 2, "total": 5, "eta_s": 1.5, "loss": 0.3}
    assert store.claim(job.id, "three") is None


def test_idempotency_key_gives_the_same_job_or_conflict(engine: Engine):
    store = JobStore(engine)
    job = store.create("train", {"a": 1, "b": 2}, idempotency_key="k")
    assert store.create("train", {"b": 2, "a": 1}, idempotency_key="k").id == job.id
    with pytest.raises(Conflict, match="Idempotency-Key"):
        store.create("train", {"a": 2}, idempotency_key="k")
    assert len(store.list()) == 1


def test_cancel_ends_a_queued_job_and_asks_a_running_one(engine: Engine):
    store = JobStore(engine)
    queued, running = store.create("train", {}), store.create("train", {})
    lease = store.claim(running.id, "w")
    assert lease is not None
    assert store.request_cancel(queued.id).status == "cancelled"
    assert store.request_cancel(running.id).status == "running"
    assert store.beat(lease).cancel_requested
    store.finish(lease, "cancelled")
    assert store.resume(running.id).status == "queued"
    with pytest.raises(Conflict, match="only a failed or cancelled"):
        store.resume(running.id)


def test_a_job_and_its_children_are_made_together_and_listed_in_order(engine: Engine):
    store = JobStore(engine)
    made = store.create(
        "sweep", {"n": 2}, job_id="job-b", children={"job-b-1": ("train", {"n": 1}), "job-b-2": ("train", {"n": 2})}
    )
    assert (made.id, made.parent) == ("job-b", None)
    found = [(job.id, job.kind, job.config, job.status, job.parent) for job in store.list(parent="job-b")]
    assert found == [
        ("job-b-1", "train", {"n": 1}, "queued", "job-b"),
        ("job-b-2", "train", {"n": 2}, "queued", "job-b"),
    ]
    assert [job.id for job in store.list()] == ["job-b", "job-b-1", "job-b-2"]
    assert [job.id for job in store.to_enqueue()] == ["job-b", "job-b-1", "job-b-2"]
    # One id is taken: neither the job nor its other child is made.
    with pytest.raises(IntegrityError):
        store.create("sweep", {}, job_id="job-c", children={"job-c-1": ("train", {}), "job-b-2": ("train", {})})
    assert len(store.list()) == 3


def test_children_are_cancelled_and_resumed_with_their_parent(engine: Engine):
    store = JobStore(engine)
    children = {f"job-b-{number}": ("train", {}) for number in range(4)}
    store.create("sweep", {}, job_id="job-b", children=children)
    store.create("train", {}, job_id="job-other")
    leases = {job_id: store.claim(job_id, "worker") for job_id in ("job-b", "job-b-0", "job-b-1", "job-b-2")}
    assert all(leases.values())
    store.finish(leases["job-b-0"], "succeeded", result={})  # pyright: ignore[reportArgumentType]
    store.finish(leases["job-b-1"], "failed", error={"detail": "x"})  # pyright: ignore[reportArgumentType]
    store.request_cancel("job-b")

    def states() -> dict[str, tuple[str, bool]]:
        return {job.id: (job.status, job.cancel_requested) for job in store.list()}

    assert states() == {
        "job-b": ("running", True),
        "job-b-0": ("succeeded", False),
        "job-b-1": ("failed", False),
        "job-b-2": ("running", True),
        "job-b-3": ("cancelled", True),
        "job-other": ("queued", False),
    }
    with pytest.raises(Conflict):
        store.resume("job-b")
    assert states()["job-b-3"] == ("cancelled", True)  # it is not ended: nothing was queued again
    for job_id in ("job-b", "job-b-2"):
        store.finish(leases[job_id], "cancelled")  # pyright: ignore[reportArgumentType]
    store.resume("job-b")
    queued = ("queued", False)
    assert states() == {
        "job-b": queued,
        "job-b-0": ("succeeded", False),
        **dict.fromkeys(("job-b-1", "job-b-2", "job-b-3", "job-other"), queued),
    }
    assert store.get("job-b-1").error is None
    assert [job.id for job in store.unfinished()] == ["job-b", "job-b-1", "job-b-2", "job-b-3", "job-other"]


def test_what_needs_a_message(engine: Engine):
    store = JobStore(engine)
    job = store.create("train", {})
    assert [found.id for found in store.to_enqueue()] == [job.id]
    store.mark_enqueued(job.id)
    assert store.to_enqueue() == []
    assert store.claim(job.id, "w") is not None
    age_heartbeat(engine, job.id, 20)
    assert store.to_enqueue() == []
    with engine.begin() as connection:
        connection.execute(update(jobs).values(enqueued_at=jobs.c.enqueued_at - 60))
    assert [found.id for found in store.to_enqueue()] == [job.id]


def test_of_many_children_a_few_have_messages_at_a_time(engine: Engine):
    store = JobStore(engine)
    children = {f"job-b-{number:03}": ("shard", {}) for number in range(1, 1200)}
    store.create("generate", {}, job_id="job-b", children=children)
    store.create("train", {}, job_id="job-after")
    in_line = [job.id for job in store.to_enqueue()]
    assert in_line == ["job-b", *(f"job-b-{number:03}" for number in range(1, 17)), "job-after"]
    for job_id in in_line:
        store.mark_enqueued(job_id)
    assert store.to_enqueue() == []
    assert store.claim("job-b-002", "worker") is not None
    assert [job.id for job in store.to_enqueue()] == ["job-b-017"]
    # One whose worker is gone is sent again, whatever its place.
    age_heartbeat(engine, "job-b-002", 20)
    with engine.begin() as connection:
        connection.execute(update(jobs).where(jobs.c.id == "job-b-002").values(enqueued_at=0.0))
    assert [job.id for job in store.to_enqueue()] == ["job-b-002", "job-b-017"]


@pytest.mark.parametrize("name", ["what?", "50%", "a%41b", "a b#c;d&é'"])
def test_the_database_lies_in_its_folder_whatever_that_is_called(tmp_path: Path, name: str):
    opened = open_store(DataRoot(tmp_path / name).sqlite_url)
    job = JobStore(opened).create("train", {})
    opened.dispose()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / "store.sqlite").is_file()
    assert job.status == "queued"


def test_a_child_that_is_being_cancelled_is_resumed_with_its_parent(engine: Engine):
    store = JobStore(engine)
    store.create("sweep", {}, job_id="job-s", children={"job-s-001": ("train", {})})
    parent, child = store.claim("job-s", "one"), store.claim("job-s-001", "two")
    assert parent is not None
    assert child is not None
    store.request_cancel("job-s")
    store.finish(parent, "cancelled")
    # The child's worker has not looked yet.
    store.resume("job-s")
    resumed = store.get("job-s-001")
    assert (resumed.status, resumed.cancel_requested) == ("queued", False)
    with pytest.raises(LeaseLost):
        store.finish(child, "cancelled")
    assert store.claim("job-s-001", "three") is not None
    with pytest.raises(LeaseLost):
        store.beat(child)


def test_children_can_be_cancelled_without_their_parent(engine: Engine):
    store = JobStore(engine)
    store.create("generate", {}, job_id="job-b", children={f"job-b-{number}": ("shard", {}) for number in (1, 2)})
    assert store.claim("job-b", "worker") is not None
    assert store.claim("job-b-1", "worker") is not None
    store.cancel_children("job-b")
    found = {job.id: (job.status, job.cancel_requested) for job in store.list()}
    assert found == {"job-b": ("running", False), "job-b-1": ("running", True), "job-b-2": ("cancelled", True)}


def test_unknown_job_is_not_found(engine: Engine):
    with pytest.raises(NotFound, match="job-0"):
        JobStore(engine).get("job-0")


def test_a_transaction_that_is_left_open_does_not_hold_its_rows_for_long(postgresql_url: str):
    engine = open_store(postgresql_url)
    with engine.connect() as connection:
        assert connection.execute(text("SHOW idle_in_transaction_session_timeout")).scalar_one() == "10s"
    engine.dispose()


def test_a_job_whose_worker_is_gone_is_cancelled_at_once(engine: Engine):
    store = JobStore(engine)
    job = store.create("train", {})
    lease = store.claim(job.id, "w")
    assert lease is not None
    age_heartbeat(engine, job.id, 20)
    assert store.request_cancel(job.id).status == "cancelled"
    with pytest.raises(LeaseLost):
        store.beat(lease)
