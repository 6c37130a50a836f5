"""A worker's sign of life: in the broker, where the API counts workers, and in a file, for a container's health check."""

from __future__ import annotations

import logging
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

logger = logging.getLogger(__name__)

WORKERS = "pointer_trainer.workers"
"""Sorted set: a worker's name, and when it was last there by the broker's clock, in seconds since 1970."""
PULSE_LIMIT_S = 15.0
"""A worker that was not seen for as long is gone."""

_FORGOTTEN_S = 3600.0


class Pulse:
    """Beats of one worker. A broker that does not answer within `timeout_s` misses one, which is said once until it answers."""

    def __init__(self, redis_url: str, name: str, file: Path | None, *, timeout_s: float = 1.0) -> None:
        retry = Retry(NoBackoff(), 0)
        self._redis = Redis.from_url(redis_url, socket_connect_timeout=timeout_s, socket_timeout=timeout_s, retry=retry)
        self._name = name
        self._file = file
        self._is_away = False

    def beat(self) -> None:
        try:
            now = _broker_time(self._redis)
            self._redis.zadd(WORKERS, {self._name: now})
            self._redis.zremrangebyscore(WORKERS, "-inf", now - _FORGOTTEN_S)
        except RedisError as exc:
            if not self._is_away:
                logger.warning("the broker does not hear this worker: %s", exc)
            self._is_away = True
            return
        self._is_away = False
        if self._file is not None:
            self._file.touch()


def count_workers(redis: Redis) -> int:
    """Workers that were seen within PULSE_LIMIT_S. Raises RedisError."""
    return redis.zcount(WORKERS, _broker_time(redis) - PULSE_LIMIT_S, "+inf")


def _broker_time(redis: Redis) -> float:
    seconds, microseconds = redis.time()
    return seconds + microseconds / 1e6
