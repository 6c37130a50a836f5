"""What the trainer's API shows under /metrics besides its requests: jobs, workers, messages, disk; read when it is asked."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from leverplus.data_root import DataRoot
from leverplus.errors import Unavailable
from leverplus.store import count_jobs
from pointer_trainer.broker import Broker

logger = logging.getLogger(__name__)


class TrainerGauges(Collector):
    """What cannot be read is absent, so that no alert takes it for 0; `leverplus_ready` is 0 then."""

    def __init__(self, engine: Engine, broker: Broker, root: DataRoot) -> None:
        self._engine = engine
        self._broker = broker
        self._root = root

    def collect(self) -> Iterable[GaugeMetricFamily]:
        yield from self._jobs()
        yield from self._broker_gauges()
        yield from self._disk()

    def _jobs(self) -> Iterable[GaugeMetricFamily]:
        try:
            counts = count_jobs(self._engine)
        except SQLAlchemyError as exc:
            logger.warning("jobs cannot be counted: %s", exc)
            return
        jobs = GaugeMetricFamily("leverplus_jobs", "Jobs in the database", labels=["kind", "status"])
        for (kind, status), count in sorted(counts.of.items()):
            jobs.add_metric([kind, status], count)
        yield jobs
        for name, text, seconds in (
            ("queued", "Age of the oldest queued job that belongs to no other", counts.longest_queued_s),
            ("running", "Age of the job that has been running longest", counts.longest_running_s),
            ("silent", "Since the last heartbeat of the running job that was heard of least lately", counts.longest_silent_s),
        ):
            yield GaugeMetricFamily(f"leverplus_job_{name}_seconds", f"{text}; 0 without one", value=seconds)

    def _broker_gauges(self) -> Iterable[GaugeMetricFamily]:
        try:
            waiting, workers = len(self._broker.waiting()), self._broker.workers()
        except Unavailable as exc:
            logger.warning("workers cannot be counted: %s", exc)
            return
        yield GaugeMetricFamily("leverplus_broker_messages", "Messages of jobs that wait in the broker", value=waiting)
        yield GaugeMetricFamily("leverplus_workers", "Workers that the broker heard of in the last 15 s", value=workers)

    def _disk(self) -> Iterable[GaugeMetricFamily]:
        try:
            usage = shutil.disk_usage(self._root.path)
        except FileNotFoundError:  # before anything is written
            return
        yield GaugeMetricFamily("leverplus_disk_bytes", "Size of the file system that holds the data", value=usage.total)
        yield GaugeMetricFamily("leverplus_disk_free_bytes", "What is free of it", value=usage.free)
