"""The Celery application: one task, whose message carries a job id and nothing else."""

from __future__ import annotations

from celery import Celery

RUN_JOB = "pointer_trainer.run_job"
QUEUE = "pointer_trainer"


def create_celery(redis_url: str) -> Celery:
    """Messages are JSON and acknowledged after the task; the visibility timeout stays at its default.

    No promise rests on a message: a lost one is sent again by the reconciler, a second one finds the lease taken.
    """
    celery = Celery("pointer_trainer", broker=redis_url)
    celery.conf.update(
        task_default_queue=QUEUE,
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=True,
        worker_prefetch_multiplier=1,
        worker_concurrency=1,
        worker_pool="prefork",
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={"socket_connect_timeout": 2.0},
    )
    return celery
