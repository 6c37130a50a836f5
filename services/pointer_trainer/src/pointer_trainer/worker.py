"""Starts a worker: `python -m pointer_trainer.worker`. One job at a time, in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from importlib import import_module
from typing import Any

from celery.signals import heartbeat_sent, setup_logging, worker_process_init, worker_process_shutdown

from leverplus.errors import LeverPlusError
from leverplus.launcher.die_with_parent import die_with
from leverplus.store import open_store
from leverplus.tracing import stop_tracing
from leverplus.web import observe, read_settings
from pointer_trainer.celery_app import create_celery
from pointer_trainer.pulse import Pulse
from pointer_trainer.settings import WorkerSettings
from pointer_trainer.tasks import register_tasks


def main() -> None:
    settings = read_settings(WorkerSettings, os.environ)
    observe("trainer_worker", settings)
    try:
        open_store(settings.store_url).dispose()
    except LeverPlusError as exc:
        sys.exit(f"error: {exc}")
    celery = create_celery(settings.redis_url)
    register_tasks(celery, settings)
    # What is trained here is nobody else's business; MLflow's client would report its use.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # A bar that is drawn for a terminal is no line of a log.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    worker = os.getpid()

    def end_with_worker(**_: Any) -> None:
        # The job's process must not go on scoring for a worker that is gone.
        die_with(worker, signal.SIGKILL)

    def load_ahead(**_: Any) -> None:
        # torch takes seconds, which a job that waits for a new worker need not wait too. Not in the way of Celery's own start.
        threading.Thread(target=import_module, args=("pointer_trainer.jobs.train",), daemon=True).start()

    pulse = Pulse(settings.redis_url, f"{socket.gethostname()}:{worker}", settings.pulse_file)

    def beat(**_: Any) -> None:
        pulse.beat()

    def leave_logs_alone(**_: Any) -> None:
        """Celery sets up logs of its own where nobody says that it is done."""

    def send_what_waits(**_: Any) -> None:
        """A pool's process ends without what Python does at an exit."""
        stop_tracing()

    worker_process_shutdown.connect(send_what_waits, weak=False)
    setup_logging.connect(leave_logs_alone, weak=False)
    heartbeat_sent.connect(beat, weak=False)
    for prepare in (end_with_worker, load_ahead):
        worker_process_init.connect(prepare, weak=False)
    celery.worker_main(["--quiet", "worker", "--loglevel=info", "--without-gossip", "--without-mingle"])


if __name__ == "__main__":
    main()
