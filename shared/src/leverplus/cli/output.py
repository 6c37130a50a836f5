"""What commands print: JSON for programs, tables for people."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson


def print_json(value: Any) -> None:
    """Indented JSON on stdout."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY).decode() + "\n")


def shown_bytes(count: int) -> str:
    if count >= 2**30:
        return f"{count / 2**30:.1f} GiB"
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def print_table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table as wide as the terminal, or as wide as it needs where there is none."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row))
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(table, markup=False)


def print_values(value: Mapping[str, Any]) -> None:
    """A table of names and values, one level of nesting laid flat; what is nested deeper is left to --json."""
    rows: list[tuple[str, object]] = []
    for name, held in value.items():
        inner = {f"{name}.{each}": found for each, found in held.items()} if isinstance(held, Mapping) else {name: held}
        rows += [(each, found) for each, found in inner.items() if not isinstance(found, Mapping)]
    print_table(None, ("what", "found"), ((name, f"{held:.4g}" if isinstance(held, float) else held) for name, held in rows))
