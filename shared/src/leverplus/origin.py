"""For whom work is done: the request and the job that log lines name, and that calls of other services pass on."""

from __future__ import annotations

import re
import secrets
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

REQUEST_ID = "X-Request-ID"
JOB_ID = "X-Job-ID"
TRACEPARENT = "traceparent"

ID_LENGTH = 128
"""Of a request's or a job's id, at most."""

_ID = re.compile(rf"[A-Za-z0-9._:@/+=~-]{{1,{ID_LENGTH}}}".encode())
_TRACEPARENT = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_NAMED = 4
"""How many ids stand for those of a batch."""


class Origin(NamedTuple):
    """None is unknown. `traceparent`: the span that further ones belong to, as W3C's Trace Context writes it."""

    request_id: str | None = None
    job_id: str | None = None
    traceparent: str | None = None

    @property
    def trace_id(self) -> str | None:
        return None if self.traceparent is None else self.traceparent[3:35]


NOBODY = Origin()

origin: ContextVar[Origin] = ContextVar("origin", default=NOBODY)
"""Of what this thread or task does now. A thread begins with nobody's unless it is started in a copy of the context."""


def asked_by(headers: Iterable[tuple[bytes, bytes]]) -> Origin:
    """What a request's headers (names in lower case) say. What is not well-formed counts as absent; an id is made."""
    request_id = job_id = traceparent = None
    for name, value in headers:
        if name == b"x-request-id":
            request_id = value.decode() if _ID.fullmatch(value) else None
        elif name == b"traceparent":
            traceparent = value.decode() if _TRACEPARENT.fullmatch(value) else None
        elif name == b"x-job-id":
            job_id = value.decode() if _ID.fullmatch(value) else None
    return Origin(request_id or secrets.token_hex(8), job_id, traceparent)


def passed_on() -> dict[str, str]:
    """Headers that tell another service for whom it is asked."""
    now = origin.get()
    named = {REQUEST_ID: now.request_id, JOB_ID: now.job_id, TRACEPARENT: now.traceparent}
    return {name: value for name, value in named.items() if value is not None}


@contextmanager
def working_for(whom: Origin) -> Generator[None]:
    token = origin.set(whom)
    try:
        yield
    finally:
        origin.reset(token)


def joined(origins: Iterable[Origin]) -> Origin:
    """Of work that is done for several at once: their ids with commas between them, and the first one's span."""
    every = list(dict.fromkeys(origins))
    spans = (one.traceparent for one in every if one.traceparent is not None)
    return Origin(_listed(one.request_id for one in every), _listed(one.job_id for one in every), next(spans, None))


def _listed(ids: Iterable[str | None]) -> str | None:
    known = list(dict.fromkeys(each for each in ids if each is not None))
    shown = [*known[:_NAMED], *([f"and {len(known) - _NAMED} more"] if len(known) > _NAMED else [])]
    return ",".join(shown) or None
