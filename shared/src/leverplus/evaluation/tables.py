"""An evaluation as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from leverplus.evaluation.comparison import Difference, Evaluation


def accuracy_table(evaluation: Evaluation) -> str:
    """A row a system, a column a number of shots; percent with the interval in brackets."""
    shots = sorted({row.shots for row in evaluation.rows})
    systems = list(dict.fromkeys(row.system for row in evaluation.rows))
    found = {(row.system, row.shots): row for row in evaluation.rows}
    lines = [_line(["system", *(shots_title(count) for count in shots)]), _line(["---", *("---:" for _ in shots)])]
    for system in systems:
        rows = [found.get((system, count)) for count in shots]
        lines.append(_line([system, *("" if row is None else percent(row.mean, row.low, row.high) for row in rows)]))
    return "\n".join(lines) + "\n"


def difference_table(evaluation: Evaluation) -> str:
    """A row a comparison, in percentage points: the difference with its paired interval, p after Holm, the minimum effect."""
    titles = ["system", "shots", "against", "difference (points)", "p (Holm)", "could show (points)"]
    lines = [_line(titles), _line(["---", "---:", "---", "---:", "---:", "---:"])]
    for row in evaluation.differences:
        lines.append(
            _line(
                [
                    row.system,
                    str(row.shots),
                    against(row),
                    percent(row.difference, row.low, row.high, sign="+"),
                    "" if row.p_holm is None else f"{row.p_holm:.4f}",
                    "" if row.minimum_effect is None else f"{100 * row.minimum_effect:.1f}",
                ]
            )
        )
    return "\n".join(lines) + "\n"


def against(row: Difference) -> str:
    """The baseline, with its number of shots where that is another one."""
    return row.baseline if row.baseline_shots == row.shots else f"{row.baseline} ({shots_title(row.baseline_shots)})"


def shots_title(count: int) -> str:
    return "1 shot" if count == 1 else f"{count} shots"


def percent(value: float, low: float | None, high: float | None, sign: str = "") -> str:
    """A share in percent with its interval."""
    interval = "no interval" if low is None or high is None else f"{100 * low:{sign}.1f}, {100 * high:{sign}.1f}"
    return f"{100 * value:{sign}.1f} [{interval}]"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
