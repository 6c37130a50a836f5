"""Real processes of a trainer that are killed, stopped and started again while jobs train; benchmarks/job_kills.py does it more.

A worker that is dead or stopped would be missed after 15 s; the tests make its heartbeat that old instead of waiting.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from trainer_processes import RL_DATA, Trainer, wait_until

from leverplus.launcher.process_table import command_line
from leverplus.store import Job

pytestmark = pytest.mark.timeout(300)

CONFIG: dict[str, Any] = {"rce_epochs": 12, "hidden_dim": 16, "batch_size": 8, "rce_lr": 1e-3, "dropout": 0.2}

Left = tuple[str, bytes]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def trainer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[Trainer]:
    """API, Valkey and two workers on a database of each kind."""
    folder: Path = tmp_path_factory.mktemp("trainer")
    url = f"sqlite:///{folder / 'store.sqlite'}"
    if request.param == "postgresql":
        server: str = request.getfixturevalue("postgresql_server")
        admin = create_engine(server, isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(text("CREATE DATABASE job_kills"))
        admin.dispose()
        url = create_engine(server).url.set(database="job_kills").render_as_string(hide_password=False)
    with Trainer(folder, url, workers=2) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(trainer: Trainer) -> Left:
    """What a job that nothing happened to left."""
    job_id = trainer.train(CONFIG, key="undisturbed")
    trainer.wait_for(job_id, "succeeded")
    return trainer.left_by(job_id)


def training(trainer: Trainer, key: str) -> Job:
    """A job that has left the state of an epoch and goes on."""
    job_id = trainer.train(CONFIG, key=key)
    wait_until(lambda: trainer.has_trained(job_id, 1), "the job trains")
    job = trainer.jobs.get(job_id)
    assert (job.status, job.lease_version) == ("running", 1)
    return job


def ends_undisturbed(trainer: Trainer, job: Job, undisturbed: Left, *, runs: int) -> None:
    ended = trainer.wait_for(job.id, "succeeded")
    assert ended.lease_version == runs
    assert trainer.left_by(job.id) == undisturbed
    assert list(trainer.root.run(job.id).glob("state-*")) == []


@pytest.mark.parametrize("victim", ["worker", "its process for the job"])
def test_a_killed_worker_costs_no_epoch(trainer: Trainer, undisturbed: Left, victim: str) -> None:
    job = training(trainer, f"killed {victim}")
    worker, pid = trainer.worker_of(job.id)
    if victim == "worker":
        worker.kill()
        worker.start()
    else:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: command_line(pid) is None, "the process is gone")
    trainer.age_heartbeat(job.id)
    ends_undisturbed(trainer, job, undisturbed, runs=2)
    assert "goes on after epoch" in (trainer.root.run(job.id) / "log.txt").read_text()


def test_of_two_workers_on_a_job_the_one_without_the_lease_is_refused(trainer: Trainer, undisturbed: Left) -> None:
    job = training(trainer, "stopped")
    worker, _ = trainer.worker_of(job.id)
    trainer.stop_between_transactions(worker, job.id)
    try:
        trainer.age_heartbeat(job.id)
        wait_until(lambda: trainer.has_trained(job.id, 2), "another worker trains")
    finally:
        worker.send(signal.SIGCONT)
    log = trainer.root.run(job.id) / "log.txt"
    wait_until(lambda: "the lease is lost" in log.read_text(), "the first worker notices")
    ends_undisturbed(trainer, job, undisturbed, runs=2)


def test_a_broker_that_comes_back_empty_costs_nothing(trainer: Trainer, undisturbed: Left) -> None:
    running = [training(trainer, f"broker {number}") for number in range(2)]
    # Both workers are busy: this one waits in the queue, which is lost.
    queued = trainer.jobs.get(trainer.train(CONFIG, key="broker 2"))
    trainer.valkey.kill()
    trainer.start_valkey()
    for job in (*running, queued):
        ends_undisturbed(trainer, job, undisturbed, runs=1)


def test_a_killed_api_costs_nothing(trainer: Trainer, undisturbed: Left) -> None:
    job = training(trainer, "api")
    trainer.api.kill()
    trainer.api.start()
    trainer.wait_until_ready()
    assert trainer.train(CONFIG, key="api") == job.id
    ends_undisturbed(trainer, job, undisturbed, runs=1)


def test_a_cancelled_job_goes_on_by_hand(trainer: Trainer, undisturbed: Left) -> None:
    job = training(trainer, "cancelled")
    trainer.ask("DELETE", f"/jobs/{job.id}")
    trainer.wait_for(job.id, "cancelled")
    trainer.ask("POST", f"/jobs/{job.id}/resume")
    ends_undisturbed(trainer, job, undisturbed, runs=2)


def test_a_failed_job_goes_on_by_hand(trainer: Trainer, undisturbed: Left) -> None:
    """It lost its worker, and then its data."""
    job = training(trainer, "failed")
    worker, pid = trainer.worker_of(job.id)
    data = trainer.root.rl_data(RL_DATA)
    aside = data.with_suffix(".aside")
    worker.kill()
    worker.start()
    wait_until(lambda: command_line(pid) is None, "the process is gone")
    data.rename(aside)
    try:
        trainer.age_heartbeat(job.id)
        trainer.wait_for(job.id, "failed")
    finally:
        aside.rename(data)
    trainer.ask("POST", f"/jobs/{job.id}/resume")
    ends_undisturbed(trainer, job, undisturbed, runs=3)
