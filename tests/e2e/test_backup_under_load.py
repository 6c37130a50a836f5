"""A backup that is taken while a generation and a training run, restored elsewhere: the same service, and the jobs end."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from leverplus.cli import app
from leverplus.client import TrainerClient
from leverplus.launcher import Stack
from leverplus.selector_client import SelectorClient

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

DATASET = "easy-vqa-tiny"
LIMIT_S = 240.0
GENERATE: dict[str, Any] = {
    "dataset": DATASET, "split": "train", "shots": [1], "num_beams": 1, "temps": [], "num_random": 2, "num_retrieval": 2,
    "pool": {"sampler": "random", "k": 8}, "shard_queries": 8,
}  # fmt: skip
TRAINING: dict[str, Any] = {"rce_epochs": 400, "hidden_dim": 32, "batch_size": 8}


def scores(database: Path) -> set[tuple[Any, ...]]:
    with sqlite3.connect(database, timeout=30) as connection:
        return set(connection.execute("SELECT set_id, query_id, pointer, raw_text FROM scores"))


def await_progress(trainer: TrainerClient, job_id: str) -> None:
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        job = trainer.job(job_id)
        assert job["status"] in ("queued", "running"), job
        if job["status"] == "running" and (job["progress"] or {}).get("step"):
            return
        time.sleep(0.05)
    raise AssertionError(f"{job_id} does not get on")


def test_backup_under_load(tmp_path: Path, tiny_data: Callable[..., Path], start_stack: Callable[..., Stack]) -> None:
    data = tiny_data(train_images=16, test_images=4, questions_per_image=3)
    asked = range(0, 48, 5)
    with (
        start_stack(data) as stack,
        TrainerClient(stack.trainer_url) as trainer,
        SelectorClient(stack.selector_url) as selector,
    ):
        trainer.wait(trainer.embed(DATASET), limit_s=LIMIT_S)
        rl_data = trainer.wait(trainer.generate(GENERATE), limit_s=LIMIT_S)["rl_data_id"]
        first = trainer.wait(trainer.train([rl_data], TRAINING | {"rce_epochs": 2}), limit_s=LIMIT_S)["checkpoint_id"]
        promotion = {"alias": "production", "by": "test", "reason": "first", "override": True}
        trainer.request("POST", f"/checkpoints/{first}/promote", json=promotion)
        answers = [selector.select(query_id=query_id) for query_id in asked]
        running = [trainer.train([rl_data], TRAINING), trainer.generate(GENERATE | {"shots": [2], "seed": 1})]
        await_progress(trainer, running[0])
        before = scores(data / "store.sqlite")
        made = CliRunner().invoke(app, ["backup", str(tmp_path / "while-training.tar"), "--data", str(data)])
        assert made.exit_code == 0, made.output
        assert trainer.job(running[0])["status"] == "running"
        trainer.cancel(running[0])
        await_progress(trainer, running[1])
        while_generating = scores(data / "store.sqlite")
        made = CliRunner().invoke(app, ["backup", str(tmp_path / "while-generating.tar"), "--data", str(data)])
        assert made.exit_code == 0, made.output
        assert trainer.job(running[1])["status"] == "running"
    for archive, kept, open_jobs in (
        ("while-training", before, running),
        ("while-generating", while_generating, running[1:]),
    ):
        new = tmp_path / archive
        restored = CliRunner().invoke(app, ["restore", str(tmp_path / f"{archive}.tar"), "--data", str(new)])
        assert restored.exit_code == 0, restored.output
        assert kept <= scores(new / "store.sqlite")
        with (
            start_stack(new) as stack,
            TrainerClient(stack.trainer_url) as trainer,
            SelectorClient(stack.selector_url) as selector,
        ):
            assert [selector.select(query_id=query_id) for query_id in asked] == answers
            for job_id in open_jobs:
                result = trainer.wait(job_id, limit_s=LIMIT_S)
                assert result.get("checkpoint_id") or result.get("rl_data_id")
        log = (new / "runs" / running[0] / "log.txt").read_text()
        assert archive != "while-training" or "goes on after" in log or "run 2" in log, log
