"""A sweep: train jobs over a grid of configs, one table of what came of them, and a plot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from leverplus.errors import LeverPlusError
from leverplus.files import atomic_file, write_json
from leverplus.store import Job
from leverplus.store.jobs import TERMINAL
from pointer_trainer.children import child_id, run_children
from pointer_trainer.context import JobContext
from pointer_trainer.curves import plot_sweep
from pointer_trainer.grid import read_grid
from pointer_trainer.requests import SweepConfig
from pointer_trainer.sweep_report import report


def sweep(context: JobContext) -> dict[str, Any]:
    """Has every child run, here or by other workers, and reports: sweep.json, sweep.md and sweep.png in the run directory.

    What has ended is not run again, so that a later run of the sweep goes on where an earlier one was. A child that failed or was
    cancelled stands in the table with its reason; LeverPlusError where none succeeded.
    """
    if context.children is None:
        raise LeverPlusError("a sweep needs a job store, which holds its children")
    request = SweepConfig.model_validate(context.config)
    points = read_grid(request.base.config, request.axes)

    def tell(jobs: Sequence[Job]) -> None:
        states = Counter(job.status for job in jobs)
        context.progress("train", sum(states[state] for state in TERMINAL), len(jobs), dict(states))

    jobs = {job.id: job for job in run_children(context, context.children, tell)}
    children = [(point, jobs.get(child_id(context.job_id, point.number))) for point in points]
    result = report(children, request.skipped)
    write_json(context.run_folder / "sweep.json", result, fence=context.fence)
    with atomic_file(context.run_folder / "sweep.md", fence=context.fence) as stream:
        stream.write(result["markdown"].encode())
    plot_sweep(result, context.run_folder / "sweep.png", fence=context.fence)
    if not any(row["state"] == "succeeded" for row in result["rows"]):
        first = next(row for row in result["rows"] if row["state"] != "skipped")
        counts = Counter(row["state"] for row in result["rows"])
        told = ", ".join(f"{count} {state}" for state, count in counts.items())
        raise LeverPlusError(f"no child succeeded ({told}), e.g. {first['job_id']}: {first['reason'] or first['state']}")
    return result
