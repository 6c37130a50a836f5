"""The API's side of the broker: is it there, what waits in its queue, and sending a job's message."""

from __future__ import annotations

import base64
import json
from typing import Any, cast
from urllib.parse import urlsplit

from celery import Celery
from kombu.exceptions import OperationalError
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from leverplus.errors import InvalidConfig, Unavailable
from pointer_trainer.celery_app import QUEUE, RUN_JOB, create_celery
from pointer_trainer.pulse import count_workers

_RETRY_AFTER_S = 2


class Broker:
    """One Redis (or Valkey). Every wait is limited to `timeout_s`; Unavailable when it does not answer."""

    def __init__(self, redis_url: str, *, timeout_s: float = 1.0) -> None:
        try:
            parts = urlsplit(redis_url)
            self._shown = f"{parts.hostname}:{parts.port or 6379}"
            self._celery: Celery = create_celery(redis_url)
            self._redis = Redis.from_url(
                redis_url,
                socket_connect_timeout=timeout_s,
                socket_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),
            )
        except ValueError as exc:
            raise InvalidConfig(field="REDIS_URL", reason=str(exc)) from exc

    def require(self) -> None:
        """Returns when the broker answers."""
        try:
            self._redis.ping()
        except RedisError as exc:
            raise self._away(exc) from exc

    def send(self, job_id: str) -> None:
        """Puts the job's message on the queue. The ping comes first because it has a time limit, which publishing has not."""
        self.require()
        try:
            self._celery.send_task(RUN_JOB, args=[job_id], queue=QUEUE, retry=False, ignore_result=True)
        except (OperationalError, RedisError) as exc:
            raise self._away(exc) from exc

    def waiting(self) -> frozenset[str]:
        """Ids of the jobs whose messages are in the queue; not of those that a worker holds already."""
        try:
            raw = cast(list[bytes], self._redis.lrange(QUEUE, 0, -1))
        except RedisError as exc:
            raise self._away(exc) from exc
        return frozenset(found for message in raw if (found := _job_id(message)) is not None)

    def workers(self) -> int:
        """How many workers it heard of lately."""
        try:
            return count_workers(self._redis)
        except RedisError as exc:
            raise self._away(exc) from exc

    def close(self) -> None:
        self._redis.close()
        self._celery.close()

    def _away(self, error: Exception) -> Unavailable:
        reason = f"{self._shown}: {error}"
        hint = "start Redis or Valkey, or correct REDIS_URL; nothing was changed"
        return Unavailable(what="broker", reason=reason, hint=hint, retry_after_s=_RETRY_AFTER_S)


def _job_id(message: bytes) -> str | None:
    """The only argument in a message as Celery writes it; None for one that is not ours, which the worker refuses."""
    try:
        body: list[Any] = json.loads(base64.b64decode(json.loads(message)["body"]))
        found: object = body[0][0]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return found if isinstance(found, str) else None
