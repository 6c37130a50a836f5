"""A sweep on real processes: one worker, which is killed while the second of four children trains; and three side by side."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from trainer_processes import Trainer, wait_until

from leverplus.launcher.process_table import command_line

pytestmark = pytest.mark.timeout(300)

CONFIG: dict[str, Any] = {"rce_epochs": 12, "hidden_dim": 16, "batch_size": 8, "rce_lr": 1e-3, "dropout": 0.2}
AXES: dict[str, list[Any]] = {"reward.mode": ["hard_plus_soft", "soft_only"], "seed": [0, 1]}


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Generator[Trainer]:
    folder: Path = tmp_path_factory.mktemp("sweep")
    with Trainer(folder, f"sqlite:///{folder / 'store.sqlite'}", workers=1) as running:
        yield running


def children(sweep_id: str) -> list[str]:
    return [f"{sweep_id}-{number:03}" for number in range(1, 5)]


def test_a_killed_worker_costs_a_sweep_no_child(trainer: Trainer) -> None:
    sweep_id = trainer.sweep(CONFIG, AXES, key="killed")
    first, second, *_ = children(sweep_id)
    trainer.wait_for(first, "succeeded")
    wait_until(lambda: trainer.has_trained(second, 1), "the second child trains")
    running = [job for job in (sweep_id, *children(sweep_id)) if trainer.jobs.get(job).status == "running"]
    worker, pid = trainer.worker_of(sweep_id)
    worker.kill()
    worker.start()
    wait_until(lambda: command_line(pid) is None, "the process is gone")
    for job_id in running:
        trainer.age_heartbeat(job_id)
    sweep = trainer.wait_for(sweep_id, "succeeded")
    assert sweep.result is not None
    assert {(row["job_id"], row["state"]) for row in sweep.result["rows"]} == {(job, "succeeded") for job in children(sweep_id)}
    runs = [trainer.jobs.get(job).lease_version for job in children(sweep_id)]
    assert runs[0] == 1
    assert sum(runs) <= 4 + 1  # but for the one that was killed, none was run again
    # It ends with what an undisturbed train job of that config gives.
    config = {**CONFIG, "seed": 1}
    alone = trainer.train(config, key="alone")
    trainer.wait_for(alone, "succeeded")
    assert trainer.left_by(second) == trainer.left_by(alone)


def test_several_workers_train_children_side_by_side(trainer: Trainer) -> None:
    others = trainer.add_workers(2)
    try:
        sweep_id = trainer.sweep({**CONFIG, "rce_epochs": 30}, AXES, key="three")
        wait_until(lambda: len(owners(trainer, sweep_id)) == 3, "three workers train a child each")
        trainer.wait_for(sweep_id, "succeeded")
        assert [trainer.jobs.get(job).lease_version for job in children(sweep_id)] == [1, 1, 1, 1]
    finally:
        for worker in others:
            worker.stop()


def test_cancelling_ends_the_child_that_runs(trainer: Trainer) -> None:
    sweep_id = trainer.sweep({**CONFIG, "rce_epochs": 1000}, AXES, key="cancelled")
    first = children(sweep_id)[0]
    wait_until(lambda: trainer.has_trained(first, 1), "the first child trains")
    trainer.ask("DELETE", f"/jobs/{sweep_id}")
    for job_id in (sweep_id, *children(sweep_id)):
        trainer.wait_for(job_id, "cancelled")


def owners(trainer: Trainer, sweep_id: str) -> set[int]:
    """The processes that have a running child."""
    running = [job for job in children(sweep_id) if trainer.jobs.get(job).status == "running"]
    return {trainer.worker_of(job)[1] for job in running}
