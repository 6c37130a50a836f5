"""A user's mistake is one line on stderr and exit code 2, never a traceback."""

from __future__ import annotations

import errno
import sys
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from leverplus.errors import LeverPlusError, Unavailable

_ORDER = (
    "import",
    "embed",
    "pool",
    "rl",
    "score",
    "train",
    "sweep",
    "headroom",
    "evaluate",
    "estimate",
    "promote",
    "rollback",
    "select",
    "jobs",
    "checkpoints",
    "keys",
    "import-reference",
)


def fail(error: LeverPlusError) -> NoReturn:
    """Prints the error, below it the last log lines of a process that ended, and exits with 2."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    for line in error.context.get("tail", []):
        print(f"  {line}", file=sys.stderr)
    raise typer.Exit(2)


_WAYS_OUT = {
    errno.ENOSPC: "free some space, or choose a folder on another disk with --data",
    errno.EDQUOT: "free some space, or choose a folder on another disk with --data",
    errno.EROFS: "choose a folder that can be written, with --data or as the target",
    errno.EACCES: "change its permissions, or choose another",
    errno.EPERM: "change its permissions, or choose another",
    errno.ENOTDIR: "choose a path whose every part but the last is a folder",
    errno.EISDIR: "name a file",
    errno.ENOENT: "name one that is there",
}


def _of_the_system(error: OSError) -> Unavailable:
    named = [str(name) for name in (error.filename, error.filename2) if name is not None]
    hint = _WAYS_OUT.get(error.errno or 0, "see to it and try again")
    return Unavailable(" -> ".join(named or ["this machine"]) + f": {error.strerror or error}; {hint}")


class OneLineErrors(TyperGroup):
    """The outermost group: every command's errors pass through here."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except LeverPlusError as error:
            fail(error)
        except BrokenPipeError:
            raise  # the reader of a pipe went away: typer ends quietly
        except OSError as error:
            fail(_of_the_system(error))
        except Exception as error:
            # safetensors reports a full disk as an error of its own; it is not imported here for a command without tensors.
            if type(error).__name__ != "SafetensorError":
                raise
            fail(Unavailable(what="a file of tensors", reason=str(error), hint=_WAYS_OUT[errno.ENOSPC]))

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order of the work, not of the alphabet."""
        return sorted(super().list_commands(ctx), key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))
