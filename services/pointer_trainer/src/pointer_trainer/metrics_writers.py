"""Where a run's rows of metrics go besides metrics.jsonl: TensorBoard event files, and an MLflow server if one is named.

Watching never decides over training: a writer that cannot write says so once in the job's log and is silent from then on, and
one that waits for a server does so on a thread of its own.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from leverplus.errors import Cancelled

EXPERIMENT = "leverplus"
JOB_TAG = "leverplus.job_id"
ROWS_WAITING = 100
CLOSE_WITHIN_S = 30.0

End = Literal["FINISHED", "FAILED", "KILLED"]


class MetricsWriter(Protocol):
    """Is given each row of metrics.jsonl in order; `phase` and `step` are in every row. Neither call raises or waits long."""

    def write(self, row: Mapping[str, Any]) -> None: ...

    def close(self, end: End) -> None: ...


class MetricsWriters:
    """Several as one."""

    def __init__(self, writers: Sequence[MetricsWriter] = ()) -> None:
        self._writers = writers

    def write(self, row: Mapping[str, Any]) -> None:
        for writer in self._writers:
            writer.write(row)

    def close(self, end: End) -> None:
        for writer in self._writers:
            writer.close(end)


NOBODY = MetricsWriters()


@contextmanager
def open_writers(
    job_id: str,
    config: Mapping[str, Any],
    run_folder: Path,
    mlflow_uri: str | None,
    logger: logging.Logger,
    *,
    further: Sequence[MetricsWriter] = (),
) -> Generator[MetricsWriters]:
    """Event files below `run_folder`/tensorboard/<phase> where tensorboard is installed, and MLflow where it is named.

    `further` ones are told last.
    """
    writers: list[MetricsWriter] = [TensorBoardWriter(run_folder / "tensorboard", logger)]
    if mlflow_uri is not None:
        writers.append(MlflowWriter(mlflow_uri, job_id, config, logger))
    opened = MetricsWriters([*writers, *further])
    end: End = "FAILED"
    try:
        yield opened
        end = "FINISHED"
    except Cancelled:
        end = "KILLED"
        raise
    finally:
        opened.close(end)


class TensorBoardWriter:
    """One event file a run and phase, made with its first row; what an earlier run of the job wrote of the phase from that step
    on is superseded. Phases have folders of their own, because each counts its steps from 0."""

    def __init__(self, folder: Path, logger: logging.Logger) -> None:
        self._folder = folder
        self._logger = logger
        self._writers: dict[str, Any] = {}
        self._is_off = False

    def write(self, row: Mapping[str, Any]) -> None:
        if self._is_off:
            return
        try:
            if (writer := self._writers.get(row["phase"])) is None:
                # An extra, and slow to import: not before there is something to write.
                from torch.utils.tensorboard import SummaryWriter

                writer = SummaryWriter(str(self._folder / row["phase"]), purge_step=row["step"])
                self._writers[row["phase"]] = writer
            for name, value in numbers_of(row).items():
                writer.add_scalar(name, value, row["step"])
            writer.flush()
        except ModuleNotFoundError:
            self._is_off = True
            self._logger.info("no TensorBoard event files: tensorboard is not installed (leverplus-pointer-trainer[tensorboard])")
        except OSError as exc:
            self._is_off = True
            self._logger.warning("no more TensorBoard event files: %s", exc)

    def close(self, end: End) -> None:
        for writer in self._writers.values():
            try:
                writer.close()
            except OSError as exc:
                self._logger.warning("the TensorBoard event file is incomplete: %s", exc)


class MlflowWriter:
    """A run of the experiment `leverplus`, found again by its tag when the job runs again.

    `write` hands the row to a thread and returns; when the server is slower than training by ROWS_WAITING rows, or away, a
    warning says so once and further rows stay in metrics.jsonl alone. `close` waits for the rest, CLOSE_WITHIN_S at most.
    """

    def __init__(self, uri: str, job_id: str, config: Mapping[str, Any], logger: logging.Logger) -> None:
        self._uri = uri
        self._job_id = job_id
        self._config = config
        self._logger = logger
        self._rows: queue.Queue[Mapping[str, Any] | End] = queue.Queue(ROWS_WAITING)
        self._is_off = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"mlflow of {job_id}", daemon=True)
        self._thread.start()

    def write(self, row: Mapping[str, Any]) -> None:
        self._put(row)

    def close(self, end: End) -> None:
        self._put(end)
        self._thread.join(CLOSE_WITHIN_S)
        if self._thread.is_alive():
            self._switch_off(f"it did not take the last rows within {CLOSE_WITHIN_S:g} s")

    def _put(self, value: Mapping[str, Any] | End) -> None:
        if self._is_off.is_set():
            return
        try:
            self._rows.put_nowait(value)
        except queue.Full:
            self._switch_off(f"it is {ROWS_WAITING} rows behind")

    def _switch_off(self, reason: str) -> None:
        if not self._is_off.is_set():
            self._is_off.set()
            self._logger.warning(
                "MLflow at %s is told nothing more: %s; metrics.jsonl has every row", self._shown(self._uri), self._shown(reason)
            )

    def _shown(self, text: str) -> str:
        """Without the user and the password that the address may hold."""
        secret, mark, _ = self._uri.partition("://")[2].partition("/")[0].rpartition("@")
        return text.replace(secret + mark, "…@").replace(secret, "…") if secret else text

    def _run(self) -> None:
        try:
            self._send()
        except Exception as exc:  # noqa: BLE001 (whatever the client raises: watching must not end a training job)
            self._switch_off(f"{type(exc).__name__}: {exc}")

    def _send(self) -> None:
        try:
            from mlflow.entities import Metric, Param
            from mlflow.tracking import MlflowClient
        except ModuleNotFoundError:
            self._switch_off("the client is not installed (leverplus-pointer-trainer[mlflow])")
            return
        client = MlflowClient(tracking_uri=self._uri)
        run_id = self._open_run(client)
        params = [Param(name, str(value)) for name, value in self._config.items()]
        client.log_batch(run_id, params=params)
        while not self._is_off.is_set():
            row = self._rows.get()
            if isinstance(row, str):
                client.set_terminated(run_id, row)
                return
            metrics = [Metric(name, value, _now_ms(), row["step"]) for name, value in numbers_of(row).items()]
            client.log_batch(run_id, metrics=metrics)

    def _open_run(self, client: Any) -> str:
        experiment = client.get_experiment_by_name(EXPERIMENT)
        experiment_id = client.create_experiment(EXPERIMENT) if experiment is None else experiment.experiment_id
        found = client.search_runs([experiment_id], f"tags.`{JOB_TAG}` = '{self._job_id}'", max_results=1)
        if found:
            client.update_run(found[0].info.run_id, status="RUNNING")
            return found[0].info.run_id
        return client.create_run(experiment_id, tags={JOB_TAG: self._job_id}, run_name=self._job_id).info.run_id


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """A row's numbers under `<phase>/<name>`; what is unknown is left out, and so are names and lists."""
    return {
        f"{row['phase']}/{name}": float(value)
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
