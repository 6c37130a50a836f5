"""One line of what was found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from leverplus.errors import LeverPlusError

State = Literal["ok", "note", "WRONG"]


@dataclass(frozen=True)
class Finding:
    """`note`: works, and is not as it was tried or meant. What is WRONG says the way out."""

    what: str
    state: State
    found: str


class Notable(LeverPlusError):
    """Raised by a check that finds something to note, where nothing is wrong."""


def checked(what: str, check: Callable[[], str]) -> Finding:
    """ok with what `check` returns, or what it raises."""
    try:
        return Finding(what, "ok", check())
    except Notable as exc:
        return Finding(what, "note", str(exc))
    except (LeverPlusError, OSError) as exc:
        return Finding(what, "WRONG", str(exc))
