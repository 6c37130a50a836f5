"""Rows of metrics beyond metrics.jsonl: event files that TensorBoard reads, and a real local MLflow server."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from leverplus.errors import Cancelled
from pointer_trainer import metrics_writers
from pointer_trainer.metrics_writers import MetricsWriters, MlflowWriter, open_writers

LOGGER = logging.getLogger("test")
ROWS: list[dict[str, Any]] = [
    {"phase": "rce", "epoch": 0, "step": 0, "train_loss": None, "held_out_rce": 2.5, "settings_without_effect": ["kl_beta"]},
    {"phase": "rce", "epoch": 1, "step": 4, "train_loss": 1.5, "held_out_rce": 2.0},
]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_event_files_hold_the_numbers_of_every_row(tmp_path: Path) -> None:
    with open_writers("job-1", {}, tmp_path, None, LOGGER) as writers:
        for row in ROWS:
            writers.write(row)
    assert scalars(tmp_path / "tensorboard" / "rce") == {
        "rce/epoch": [(0, 0.0), (4, 1.0)],
        "rce/held_out_rce": [(0, 2.5), (4, 2.0)],
        "rce/train_loss": [(4, 1.5)],
    }


def test_a_run_that_starts_again_supersedes_the_one_before(tmp_path: Path) -> None:
    for loss in (3.0, 1.0):
        with open_writers("job-1", {}, tmp_path, None, LOGGER) as writers:
            writers.write({**ROWS[1], "held_out_rce": loss})
        time.sleep(1.1)  # event files are named, and read in the order of, the second they were made in
    assert scalars(tmp_path / "tensorboard" / "rce")["rce/held_out_rce"] == [(4, 1.0)]


def test_a_run_that_goes_on_in_a_later_phase_leaves_the_one_before(tmp_path: Path) -> None:
    """Steps are counted anew in each phase: GRPO's step 0 supersedes none of RCE's."""
    for row in (ROWS[1], {**ROWS[0], "phase": "grpo"}):
        with open_writers("job-1", {}, tmp_path, None, LOGGER) as writers:
            writers.write(row)
        time.sleep(1.1)
    assert scalars(tmp_path / "tensorboard" / "rce")["rce/held_out_rce"] == [(4, 2.0)]
    assert scalars(tmp_path / "tensorboard" / "grpo")["grpo/held_out_rce"] == [(0, 2.5)]


def test_event_files_that_cannot_be_written_are_warned_about_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tensorboard").write_text("a file where a folder should be")
    with open_writers("job-1", {}, tmp_path, None, LOGGER) as writers:
        for row in ROWS:
            writers.write(row)
    assert len([record for record in caplog.records if "TensorBoard" in record.message]) == 1


def test_every_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[str] = []
    monkeypatch.setattr(MetricsWriters, "close", lambda _, end: ends.append(end))
    with open_writers("job-1", {}, tmp_path, None, LOGGER):
        pass
    for error in (Cancelled(what="training"), ValueError("x")):
        with pytest.raises(type(error)), open_writers("job-1", {}, tmp_path, None, LOGGER):
            raise error
    assert ends == ["FINISHED", "KILLED", "FAILED"]


def test_a_slow_server_is_given_up_without_waiting(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The thread never takes a row: the queue fills, and nothing of it is waited for beyond the limit."""
    import threading

    gate = threading.Event()

    def stuck(_: MlflowWriter) -> None:
        gate.wait(60)

    monkeypatch.setattr(MlflowWriter, "_send", stuck)
    monkeypatch.setattr(metrics_writers, "CLOSE_WITHIN_S", 0.05)
    writer = MlflowWriter("http://127.0.0.1:9", "job-1", {}, LOGGER)
    for _ in range(metrics_writers.ROWS_WAITING + 5):
        writer.write(ROWS[0])
    writer.close("FINISHED")
    gate.set()
    told = [record.message for record in caplog.records]
    assert len(told) == 1
    assert "100 rows behind" in told[0]


def test_a_client_that_fails_is_warned_about_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refused(_: MlflowWriter) -> None:
        raise ConnectionError("nobody is there")

    monkeypatch.setattr(MlflowWriter, "_send", refused)
    writer = MlflowWriter("http://127.0.0.1:9", "job-1", {}, LOGGER)
    for row in ROWS:
        writer.write(row)
    writer.close("FINISHED")
    assert [record.message for record in caplog.records] == [
        "MLflow at http://127.0.0.1:9 is told nothing more: ConnectionError: nobody is there; metrics.jsonl has every row"
    ]


@pytest.fixture
def mlflow_url(tmp_path: Path) -> Generator[str]:
    """A real server on a free port, or a skip that says what it needs."""
    pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    pytest.importorskip("flask_cors", reason="the MLflow server needs flask, flask-cors and graphene")
    port = free_port()
    # The server's own application; `mlflow server` adds to it what needs pandas.
    command = [sys.executable, "-m", "flask", "--app", "mlflow.server:app", "run", "--port", str(port)]
    variables = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{tmp_path}/mlflow.sqlite",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": str(tmp_path / "artifacts"),
    }
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=tmp_path, env=variables, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    end = time.monotonic() + 120
    try:
        while True:
            assert server.poll() is None, (tmp_path / "server.log").read_text()[-2000:]
            assert time.monotonic() < end, (tmp_path / "server.log").read_text()[-2000:]
            try:
                if httpx.get(f"{url}/health", timeout=2).is_success:
                    break
            except httpx.HTTPError:
                time.sleep(0.2)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(300)
def test_a_real_mlflow_server_has_every_row(tmp_path: Path, mlflow_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setattr(metrics_writers, "CLOSE_WITHIN_S", 120.0)
    config: Mapping[str, Any] = {"rce_lr": 1e-4, "dropout": 0.1}
    for rows in (ROWS[:1], ROWS[1:]):  # the job runs again: one run at the server
        with open_writers("job-1", config, tmp_path, mlflow_url, LOGGER) as writers:
            for row in rows:
                writers.write(row)
    asked = {"experiment_ids": [_experiment(mlflow_url)], "max_results": 10}
    (run,) = httpx.post(f"{mlflow_url}/api/2.0/mlflow/runs/search", json=asked, timeout=30).json()["runs"]
    assert run["info"]["status"] == "FINISHED"
    assert {each["key"]: each["value"] for each in run["data"]["params"]} == {"rce_lr": "0.0001", "dropout": "0.1"}
    query = {"run_id": run["info"]["run_id"], "metric_key": "rce/held_out_rce"}
    history = httpx.get(f"{mlflow_url}/api/2.0/mlflow/metrics/get-history", params=query, timeout=30).json()["metrics"]
    assert [(each.get("step", 0), each["value"]) for each in history] == [(0, 2.5), (4, 2.0)]


def _experiment(url: str) -> str:
    query = {"experiment_name": metrics_writers.EXPERIMENT}
    found = httpx.get(f"{url}/api/2.0/mlflow/experiments/get-by-name", params=query, timeout=30).json()
    return found["experiment"]["experiment_id"]


def test_the_password_of_mlflow_is_not_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(MlflowWriter, "_run", lambda _: None)
    address = "http://me:hunter2@127.0.0.1:1/a"
    writer = MlflowWriter(address, "job-1", {}, logging.getLogger("job"))
    with caplog.at_level(logging.WARNING, "job"):
        writer._switch_off(f"no answer from {address}, whose password is me:hunter2")  # pyright: ignore[reportPrivateUsage]
    assert "hunter2" not in caplog.text
    assert "MLflow at http://…@127.0.0.1:1/a" in caplog.text
