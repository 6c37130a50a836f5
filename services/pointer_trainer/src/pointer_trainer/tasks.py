"""The one task: a thin entry to run_job."""

from __future__ import annotations

import os
import socket

from celery import Celery

from leverplus.store import JobStore, open_store
from pointer_trainer.celery_app import RUN_JOB
from pointer_trainer.runner import run_job
from pointer_trainer.settings import WorkerSettings


def register_tasks(celery: Celery, settings: WorkerSettings) -> None:
    """Registers run_job(job_id). The database is opened per job: a connection must not cross a fork."""

    def task(job_id: str) -> None:
        engine = open_store(settings.store_url)
        try:
            run_job(job_id, jobs=JobStore(engine), settings=settings, owner=f"{socket.gethostname()}:{os.getpid()}")
        finally:
            engine.dispose()

    celery.task(name=RUN_JOB)(task)
