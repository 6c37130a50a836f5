"""A generation of many shards by two workers and two scorers, of which one each is killed on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from trainer_processes import Trainer, wait_until, write_questions

from leverplus.launcher.process_table import command_line
from leverplus.store import Job

pytestmark = pytest.mark.timeout(300)

QUERIES, SHARDS = 120, 12
ASKED: dict[str, Any] = {
    "num_beams": 2,
    "num_samples_per_temp": 1,
    "num_retrieval": 1,
    "logging": {"draws": 4},
    "pool": {"k": 16},
    "shard_queries": QUERIES // SHARDS,
}


def file_of(trainer: Trainer, job: Job) -> tuple[dict[str, Any], list[bytes]]:
    """`_meta` and the other lines of the RL data that a job made."""
    assert job.result is not None
    head, *lines = trainer.root.rl_data(job.result["rl_data_id"]).read_bytes().splitlines()
    return orjson.loads(head)["_meta"], lines


def test_a_killed_worker_and_a_killed_scorer_leave_no_trace(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'store.sqlite'}"
    with Trainer(tmp_path, database, workers=2, scorers=2, scorer_delay_s=0.3) as trainer:
        write_questions(trainer.root, QUERIES)
        undisturbed = trainer.wait_for(trainer.generate(key="undisturbed", **ASKED), "succeeded")
        trainer.forget_scores()

        job_id = trainer.generate(key="killed", **ASKED)

        def children(status: str) -> list[Job]:
            return trainer.jobs.list(parent=job_id, status=status)

        def owner(job: Job) -> int:
            return trainer.worker_of(job.id)[1]

        wait_until(lambda: len(children("succeeded")) >= 2, "two shards are done")
        wait_until(lambda: len({owner(job) for job in children("running")}) == 2, "both workers have a shard")
        victim, pid = trainer.worker_of(job_id)
        victim.kill()
        trainer.scorers[0].kill()
        wait_until(lambda: command_line(pid) is None, "the process is gone")
        done = {job.id for job in children("succeeded")}
        assert 2 <= len(done) < SHARDS
        [orphan] = [job for job in children("running") if owner(job) == pid]
        # Missed after 15 s; not waited for here.
        for orphaned in (job_id, orphan.id):
            trainer.age_heartbeat(orphaned)

        ended = trainer.wait_for(job_id, "succeeded")
        by_id = {job.id: job for job in trainer.jobs.list(parent=job_id)}
        assert {by_id[child].lease_version for child in done} == {1}, "a shard that was finished is not taken again"
        assert by_id[orphan.id].lease_version == 2
        assert len(by_id) == SHARDS
        assert {job.status for job in by_id.values()} == {"succeeded"}

        (head, lines), (other_head, other_lines) = file_of(trainer, ended), file_of(trainer, undisturbed)
        assert [orjson.loads(line)["query_id"] for line in lines] == list(range(QUERIES))
        assert lines == other_lines
        assert head.pop("job_id") != other_head.pop("job_id")
        assert head == other_head
        assert not (trainer.root.run(job_id) / "shards").exists()
