"""Starts a worker: `python -m pointer_trainer.worker`. One job at a time, in a process of its own."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from importlib import import_module
from typing import Any

from celery.signals import heartbeat_sent, worker_process_init

from leverplus.errors import LeverPlusError
from leverplus.launcher.die_with_parent import die_with
from leverplus.store import open_store
from leverplus.web import read_settings
from pointer_trainer.celery_app import create_celery
from pointer_trainer.pulse import Pulse
from pointer_trainer.settings import WorkerSettings
from pointer_trainer.tasks import register_tasks


def main() -> None:
    settings = read_settings(WorkerSettings, os.environ)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        open_store(settings.store_url).dispose()
    except LeverPlusError as exc:
        sys.exit(f"error: {exc}")
    celery = create_celery(settings.redis_url)
    register_tasks(celery, settings)
    # What is trained here is nobody else's business; MLflow's client would report its use.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
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

    heartbeat_sent.connect(beat, weak=False)
    for prepare in (end_with_worker, load_ahead):
        worker_process_init.connect(prepare, weak=False)
    celery.worker_main(["worker", "--loglevel=info", "--without-gossip", "--without-mingle"])


if __name__ == "__main__":
    main()
