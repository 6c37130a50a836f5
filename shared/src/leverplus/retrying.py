"""How long a request is tried again that a server turned away, or did not answer."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


@dataclass(frozen=True)
class RetryPolicy:
    """How long a request is tried. Times in seconds.

    After attempt n fails it waits `first_wait_s` · 2ⁿ⁻¹, at most `longest_wait_s`, times a random factor from ½ to 1, and
    never less than a Retry-After asks for. It gives up after `attempts`, or when the next one would begin past `total_s`.
    """

    attempts: int = 6
    total_s: float = 180.0
    attempt_s: float = 60.0
    first_wait_s: float = 0.5
    longest_wait_s: float = 20.0

    def wait_s(self, attempt: int, retry_after_s: float) -> float:
        backoff = min(self.first_wait_s * 2 ** (attempt - 1), self.longest_wait_s)
        return max(backoff * random.uniform(0.5, 1.0), retry_after_s)

    def gives_up(self, attempt: int, spent_s: float, wait_s: float) -> bool:
        """Whether attempt number `attempt` was the last, `spent_s` after the first began, if the next waits `wait_s`."""
        return attempt >= self.attempts or spent_s + wait_s >= self.total_s


def retry_after_s(header: str | None) -> float:
    """A Retry-After header, seconds or a date, as seconds from now; 0 where it says nothing (RFC 9110, section 10.2.3)."""
    if header is None:
        return 0.0
    if header.isascii() and header.strip().isdigit():
        return float(header)
    try:
        moment = parsedate_to_datetime(header)
    except (ValueError, OverflowError):
        return 0.0
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return max((aware - datetime.now(UTC)).total_seconds(), 0.0)
