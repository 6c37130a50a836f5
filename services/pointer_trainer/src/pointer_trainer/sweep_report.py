"""What a sweep came to: one row a child, the best first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from leverplus.fingerprint import canonical_json
from leverplus.store import Job
from pointer_trainer.grid import GridPoint

ACCURACY, REWARD = "held_out_expected_accuracy", "held_out_expected_reward"
_METRICS = (ACCURACY, REWARD, "held_out_rce", "epoch")
_DIVIDES_ANEW = ("train_ratio", "split")


def report(children: Sequence[tuple[GridPoint, Job | None]], skipped: Mapping[int, str]) -> dict[str, Any]:
    """{names, sorted_by, rows, checkpoint_id, notes, markdown}, in JSON types; `skipped`: number -> why it was not trained.

    A row: number, values, job_id, state, checkpoint_id, epoch (the one kept), held_out_expected_accuracy,
    held_out_expected_reward, held_out_rce, reason; None where it is not known. Sorted by accuracy, which all rows have in the
    same unit, or by reward where no accuracy is known; rows without come last. `checkpoint_id` is that of the first row.
    """
    rows = [_row(point, job, skipped.get(point.number)) for point, job in children]
    sorted_by = ACCURACY if any(row[ACCURACY] is not None for row in rows) else REWARD
    rows.sort(key=lambda row: (row[sorted_by] is None, -(row[sorted_by] or 0.0), row["number"]))
    names = list(children[0][0].values)
    notes = _notes(names, sorted_by, [_metrics(job) for _, job in children if _metrics(job)])
    return {
        "names": names,
        "sorted_by": sorted_by,
        "rows": rows,
        "checkpoint_id": rows[0]["checkpoint_id"],
        "notes": notes,
        "markdown": _markdown(names, rows, notes),
    }


def _row(point: GridPoint, job: Job | None, reason: str | None) -> dict[str, Any]:
    state = "skipped" if reason is not None else "deleted" if job is None else job.status
    result = (job.result if job is not None else None) or {}
    metrics = _metrics(job)
    if job is not None and job.error is not None:
        reason = job.error.get("detail")
    return {
        "number": point.number,
        "values": dict(point.values),
        "job_id": job.id if job is not None else None,
        "state": state,
        "checkpoint_id": result.get("checkpoint_id"),
        **{name: metrics.get(name) for name in _METRICS},
        "reason": reason,
    }


def _metrics(job: Job | None) -> Mapping[str, Any]:
    """Of the checkpoint that a child recommends; empty without one."""
    return {} if job is None or job.result is None else job.result["metrics"]


def _notes(names: Sequence[str], sorted_by: str, metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is to be known to read the numbers."""
    notes = [
        "Held-out reward and RCE (raw rewards, τ = 1) are in units of a row's own reward: they do not compare rows of different "
        "rewards.",
        "Held-out accuracy is vqa_acc_score as expected under the selector over the scored candidates of the held-out queries, "
        "in one unit for all rows" + (", which are sorted by it." if sorted_by == ACCURACY else "; here it is not known."),
        "Both the epoch kept and the first row are chosen on these queries: evaluate its checkpoint on others.",
    ]
    if uniform := sorted({round(found["held_out_uniform_accuracy"], 4) for found in metrics if found[ACCURACY] is not None}):
        notes.insert(2, f"One of those candidates at random: {', '.join(f'{value:.4f}' for value in uniform)}.")
    if varied := [name for name in names if name in _DIVIDES_ANEW]:
        notes.append(f"Rows that differ in {' or '.join(varied)} were judged on different queries.")
    if shares := Counter((found["file_share"], found["fallback_share"]) for found in metrics):
        file, fallback = next(iter(shares))
        notes.append(f"Scores: {file:.1%} by the metric over ten answers, {fallback:.1%} by fallback.")
    return notes


def _markdown(names: Sequence[str], rows: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> str:
    columns = ["child", *names, "held-out accuracy", "held-out reward", "held-out RCE", "epoch", "checkpoint", "state", "reason"]
    lines = [columns, ["---"] * len(columns)]
    for row in rows:
        measured = ["" if row[name] is None else f"{row[name]:.4f}" for name in _METRICS[:3]]
        ends = ("epoch", "checkpoint_id", "state", "reason")
        lines.append(
            [str(row["number"]), *(_cell(row["values"][name]) for name in names), *measured, *(_cell(row[e]) for e in ends)]
        )
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return table + "".join(f"\n{note}\n" for note in notes)


def _cell(value: Any) -> str:
    text = "" if value is None else value if isinstance(value, str) else canonical_json(value).decode()
    return " ".join(text.replace("|", "\\|").split())
