"""Signals that end the launcher become an exception, so that `with` blocks stop what they started."""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StoppedBySignal(BaseException):
    """^C, SIGTERM or a terminal that hung up. Not an Exception: nothing but the outermost caller may catch it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """What a shell reports for a process ended by this signal."""
        return 128 + self.number


@contextmanager
def stop_on_signals() -> Generator[None]:
    """Inside, the first SIGINT, SIGTERM or SIGHUP raises StoppedBySignal in the main thread; later ones are ignored.

    Ignored, because the first one has begun an orderly stop whose every wait is limited. Main thread only.
    """
    former = {number: signal.getsignal(number) for number in _ENDING}

    def stop(number: int, _frame: FrameType | None) -> None:
        for each in _ENDING:
            signal.signal(each, signal.SIG_IGN)
        raise StoppedBySignal(number)

    for number in _ENDING:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
