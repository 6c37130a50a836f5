"""Which requests are tried again, and how often."""

from __future__ import annotations

import time

import httpx

from leverplus.errors import LeverPlusError
from leverplus.retrying import RetryPolicy, retry_after_s

PATIENCE = RetryPolicy(attempts=5, total_s=60.0, first_wait_s=0.2, longest_wait_s=10.0)
"""`attempt_s` is the client's own timeout."""
ONCE = RetryPolicy(attempts=1)

_MAY_PASS = (429, 500, 502, 503, 504)
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class Attempts:
    """Those of one request.

    A `repeatable` one, of which the service may do two with the effect of one, is tried again when it is turned away (429), fails
    (5xx) or gets no answer; any other only where no connection was made, so that it was never sent.
    """

    def __init__(self, policy: RetryPolicy, *, repeatable: bool) -> None:
        self._policy = policy
        self._repeatable = repeatable
        self._begun = time.monotonic()
        self._made = 0

    def wait_s(self, error: LeverPlusError, response: httpx.Response | None) -> float:
        """How long to wait before the next; raises `error` where another is of no use, or too many. `response`: None without."""
        if not self._may_pass(error, response):
            raise error
        self._made += 1
        asked_for = None if response is None else response.headers.get("Retry-After")
        wait = self._policy.wait_s(self._made, retry_after_s(asked_for))
        if self._policy.gives_up(self._made, time.monotonic() - self._begun, wait):
            raise error
        return wait

    def _may_pass(self, error: LeverPlusError, response: httpx.Response | None) -> bool:
        if response is not None:
            return self._repeatable and response.status_code in _MAY_PASS
        return self._repeatable or isinstance(error.__cause__, _NOT_SENT)
