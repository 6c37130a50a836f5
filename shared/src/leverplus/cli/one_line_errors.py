"""A user's mistake is one line on stderr and exit code 2, never a traceback."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from leverplus.errors import LeverPlusError

_ORDER = ("import", "embed", "pool", "rl", "score", "train", "evaluate", "promote", "select", "import-reference")


def fail(error: LeverPlusError) -> NoReturn:
    """Prints the error, below it the last log lines of a process that ended, and exits with 2."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    for line in error.context.get("tail", []):
        print(f"  {line}", file=sys.stderr)
    raise typer.Exit(2)


class OneLineErrors(TyperGroup):
    """The outermost group: every command's errors pass through here."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except LeverPlusError as error:
            fail(error)

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order of the work, not of the alphabet."""
        return sorted(super().list_commands(ctx), key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))
