"""An evaluation's result as tables in a terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from leverplus.evaluation import Difference, Evaluation, Row


def print_evaluation_tables(result: Mapping[str, Any]) -> Evaluation:
    """Accuracies and paired differences with their 95 % intervals; the evaluation that was printed."""
    from rich.console import Console
    from rich.table import Table

    evaluation = _evaluation(result)
    console = Console() if sys.stdout.isatty() else Console(width=140)
    shots = sorted({row.shots for row in evaluation.rows})
    split = f"{result['split']} " if result.get("split") else ""
    title = f"VQA accuracy in % [95 % interval], {result['queries']} {split}questions about {evaluation.images} images"
    table = Table(title=title, title_justify="left")
    table.add_column("demonstrations")
    for count in shots:
        table.add_column("1 shot" if count == 1 else f"{count} shots", justify="right")
    for system in dict.fromkeys(row.system for row in evaluation.rows):
        found = {row.shots: row for row in evaluation.rows if row.system == system}
        table.add_row(system, *(_accuracy(found.get(count)) for count in shots))
    differences = Table(title="Paired differences in points [95 % interval]", title_justify="left")
    for column in ("demonstrations", "shots", "against", "difference", "p (Holm)", "could show"):
        differences.add_column(column, justify="left" if column in ("demonstrations", "against") else "right")
    for row in evaluation.differences:
        p = "" if row.p_holm is None else f"{row.p_holm:.4f}"
        effect = "" if row.minimum_effect is None else f"{100 * row.minimum_effect:.1f}"
        differences.add_row(row.system, str(row.shots), row.baseline, _difference(row), p, effect)
    console.print()
    console.print(table)
    console.print(differences)
    return evaluation


def _evaluation(result: Mapping[str, Any]) -> Evaluation:
    return Evaluation.from_json({name: result[name] for name in ("rows", "differences", "images", "draws", "seed")})


def _accuracy(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{100 * row.mean:.1f}" + (
        "" if row.low is None or row.high is None else f" [{100 * row.low:.1f}, {100 * row.high:.1f}]"
    )


def _difference(row: Difference) -> str:
    interval = "" if row.low is None or row.high is None else f" [{100 * row.low:+.1f}, {100 * row.high:+.1f}]"
    return f"{100 * row.difference:+.1f}{interval}"
