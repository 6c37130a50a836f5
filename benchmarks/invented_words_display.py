"""The tables that invented_words_table prints."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def show(groups: dict[str, list[dict[str, Any]]], subsets: dict[str, Any], probes: list[dict[str, Any]], goals: Any) -> None:
    console = Console(width=150)
    table = Table("system", *(f"{name} (n={rows[0]['n']})" for name, rows in groups.items()), title="VQA accuracy, %")
    for row in groups["all"]:
        cells = [next(one for one in rows if one["system"] == row["system"]) for rows in groups.values()]
        table.add_row(row["system"], *map(_percent, cells))
    console.print(table)
    other = Table("figure", "n", "%")
    for name, one in subsets.items():
        other.add_row(name, str(one["n"]), _percent(one))
    for one in probes:
        other.add_row(f"linear probe of {one['of']} ({one['train_images']} training images)", str(one["n"]), _percent(one))
    console.print(other)
    verdict = Table("figure", "measured", "wanted", "met")
    for one in goals:
        measured = "-" if one["measured"] is None else f"{100 * one['measured']:.1f}"
        verdict.add_row(one["figure"], measured, one["wanted"], {True: "yes", False: "NO", None: "-"}[one["met"]])
    console.print(verdict)


def _percent(one: dict[str, Any]) -> str:
    if one["low"] is None:
        return f"{100 * one['mean']:.1f}"
    return f"{100 * one['mean']:.1f} [{100 * one['low']:.1f}, {100 * one['high']:.1f}]"
