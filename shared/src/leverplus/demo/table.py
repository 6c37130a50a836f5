"""The evaluation as tables in a terminal, with what they do and do not say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leverplus.cli.evaluation_tables import print_evaluation_tables
from leverplus.evaluation import Difference, Evaluation


def print_evaluation(result: Mapping[str, Any], report: Mapping[str, Any]) -> None:
    """Accuracies and paired differences with their 95 % intervals, from an evaluation's result and its RL data's report."""
    evaluation = print_evaluation_tables(result)
    print(_reading(evaluation, result["answers_source"], report))


def _reading(evaluation: Evaluation, answers_source: str, report: Mapping[str, Any]) -> str:
    """What may be concluded, and what not."""
    lines = [
        *_verdicts(evaluation),
        f"Candidates were proposed by the training queries' own answers: of {report['queries']} queries all of "
        f"{report['queries_all_correct']} were right, all of {report['queries_all_wrong']} wrong.",
    ]
    if answers_source == "simulated":
        lines.append("Pictures, questions and the ten answers to each are generated; the VLM never saw these languages.")
    return "\n".join(lines)


def _verdicts(evaluation: Evaluation) -> list[str]:
    """One sentence for the selector against each baseline, at the largest number of shots."""
    baselines = {row.baseline for row in evaluation.differences}
    learned = [row for row in evaluation.differences if row.system not in baselines]
    most = max((row.shots for row in learned), default=0)
    shots = "1 shot" if most == 1 else f"{most} shots"
    return [f"At {shots} {row.system} is {_verdict(row)} {row.baseline}." for row in learned if row.shots == most]


def _verdict(row: Difference) -> str:
    if row.low is not None and row.low > 0:
        return "better than"
    if row.high is not None and row.high < 0:
        return "worse than"
    return "not shown to differ from"
