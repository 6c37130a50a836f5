"""The evaluation as tables in a terminal, with what they do and do not say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leverplus.cli.evaluation_tables import print_evaluation_tables
from leverplus.evaluation import Evaluation


def print_evaluation(result: Mapping[str, Any], report: Mapping[str, Any]) -> None:
    """Accuracies and paired differences with their 95 % intervals, from an evaluation's result and its RL data's report."""
    evaluation = print_evaluation_tables(result)
    print(_reading(evaluation, result["answers_source"], report))


def _reading(evaluation: Evaluation, answers_source: str, report: Mapping[str, Any]) -> str:
    """What may be concluded, and what not."""
    clear = [row for row in evaluation.differences if row.low is not None and row.high is not None and row.low * row.high > 0]
    alike = report["queries_all_correct"] + report["queries_all_wrong"]
    lines = [
        f"{len(clear)} of {len(evaluation.differences)} intervals of a difference leave out 0."
        if clear
        else "Every interval of a difference holds 0: no choice of demonstrations is shown to be better than another.",
        "On this data demonstrations hardly matter: the small VLM was trained on such questions and needs no examples.",
        f"For {alike} of {report['queries']} training queries all candidates scored alike: they teach a selector nothing.",
        "So the demo shows that every part works, not that learned demonstrations help.",
    ]
    if answers_source == "replicated":
        lines.append("easy-vqa has one answer a question; it counts as ten.")
    return "\n".join(lines)
