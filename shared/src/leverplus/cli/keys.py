"""`leverplus keys`: keys for services that ask for one."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Annotated, Literal

import typer

app = typer.Typer(help="Keys for the services.", no_args_is_help=True)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Whose key it is; audit lines show it.")],
    role: Annotated[Literal["read", "write", "admin"], typer.Option(help="Each may do what those before it may.")],
    expires: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="The last day on which it is good.")] = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Requests a second; default: LEVERPLUS_KEY_RATE.")] = None,
) -> None:
    """Print a new key, which is shown this once, and on stdout the line for the file that LEVERPLUS_KEYS names."""
    from leverplus.keys import new_key

    key, line = new_key(name, role, expires=None if expires is None else expires.date(), rate=rate)
    print(f"key of {name}, kept nowhere: {key}", file=sys.stderr)
    print(line)
