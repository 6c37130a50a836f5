"""Commands on a data folder as a whole: backup, restore."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leverplus.cli.options import DEFAULT_DATA, Data, data_root, database_url, require_folder

if TYPE_CHECKING:
    from leverplus.data_root import DataRoot


def register(app: typer.Typer) -> None:
    app.command()(backup)
    app.command()(restore)


def backup(
    file: Annotated[str, typer.Argument(help="A tar archive to make; `-` for standard output.")],
    data: Data = DEFAULT_DATA,
) -> None:
    """Everything in a data folder as one archive; services may run on meanwhile.

    With DATABASE_URL scores and jobs lie in PostgreSQL and are no part of it: take pg_dump first, then this.
    """
    from leverplus.backup import write_backup
    from leverplus.cli.output import shown_bytes
    from leverplus.errors import InvalidInput
    from leverplus.files import atomic_file

    root = data_root(data)
    database = _sqlite_file(root)
    started = time.monotonic()
    if file == "-":
        made = write_backup(root, sys.stdout.buffer, database=database)
        sys.stdout.buffer.flush()
    else:
        path = Path(file)
        if path.exists():
            raise InvalidInput(f"{path} is there already; name a new file")
        require_folder(path)
        with atomic_file(path) as stream:
            made = write_backup(root, stream, database=database)
    told = f"{made.files} files, {shown_bytes(made.bytes)}, in {time.monotonic() - started:.1f} s, as of {made.made_at}"
    print(told, file=sys.stderr)
    if database is None:
        print("without the database: keep it with a pg_dump that was taken before this", file=sys.stderr)


def _sqlite_file(root: DataRoot) -> Path | None:
    """None where DATABASE_URL names PostgreSQL."""
    from leverplus.store.engine import parsed_url

    url = parsed_url(database_url() or root.sqlite_url)
    return Path(url.database or "") if url.get_backend_name() == "sqlite" else None


def restore(
    file: Annotated[str, typer.Argument(help="What `leverplus backup` made; `-` for standard input.")],
    data: Annotated[Path, typer.Option("--data", help="A folder that is empty, or not there yet.")],
) -> None:
    """A data folder from an archive: all of it, or nothing where the archive is cut short or altered."""
    from leverplus.cli.output import shown_bytes
    from leverplus.restore import read_backup

    if file == "-":
        made = read_backup(sys.stdin.buffer, data)
    else:
        with Path(file).open("rb") as stream:
            made = read_backup(stream, data)
    print(f"{data}: {made.files} files, {shown_bytes(made.bytes)}, as of {made.made_at}", file=sys.stderr)
    if made.database == "postgresql":
        print("without the database: restore the pg_dump that belongs to it before services start", file=sys.stderr)
