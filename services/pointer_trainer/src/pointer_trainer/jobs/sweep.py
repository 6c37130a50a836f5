"""A sweep: train jobs over a grid of configs, one table of what came of them, and a plot."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from leverplus.errors import LeverPlusError
from leverplus.files import atomic_file, write_json
from leverplus.store import Job, LeaseLost
from leverplus.store.jobs import TERMINAL
from pointer_trainer.context import Children, JobContext
from pointer_trainer.curves import plot_sweep
from pointer_trainer.grid import child_id, read_grid
from pointer_trainer.requests import SweepConfig
from pointer_trainer.sweep_report import report

POLL_S = 0.5


def sweep(context: JobContext) -> dict[str, Any]:
    """Has every child run, here or by other workers, and reports: sweep.json, sweep.md and sweep.png in the run directory.

    What has ended is not run again, so that a later run of the sweep goes on where an earlier one was. A child that failed or was
    cancelled stands in the table with its reason; LeverPlusError where none succeeded.
    """
    if context.children is None:
        raise LeverPlusError("a sweep needs a job store, which holds its children")
    request = SweepConfig.model_validate(context.config)
    points = read_grid(request.base.config, request.axes)
    _run_all(context, context.children)
    jobs = {job.id: job for job in context.children.list()}
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


def _run_all(context: JobContext, children: Children) -> None:
    """Returns when every child has ended. Those that wait are run here; those that run elsewhere are waited for, and taken over
    when their worker is gone."""
    told_s = 0.0

    def tell(jobs: Sequence[Job]) -> None:
        nonlocal told_s
        told_s = time.monotonic()
        states = Counter(job.status for job in jobs)
        context.progress("train", sum(states[state] for state in TERMINAL), len(jobs), dict(states))

    def watch() -> None:
        """While a child is run here; at most twice a second."""
        if time.monotonic() - told_s < POLL_S:
            return
        try:
            tell(children.list())
        except LeaseLost:
            # The child has a lease of its own and goes on; this run ends after it.
            context.logger.warning("the sweep has another worker, or has ended")

    while True:
        # Ends an outage of the database that outlasts the lease, too.
        context.check()
        try:
            jobs = children.list()
            tell(jobs)
            open_jobs = [job for job in jobs if job.status not in TERMINAL]
            if not open_jobs:
                return
            # A claim on one that runs succeeds only where its heartbeat has stopped.
            waiting_first = sorted(open_jobs, key=lambda job: job.status != "queued")
            if any(children.run(job.id, watch) for job in waiting_first):
                continue
        except SQLAlchemyError as exc:
            context.logger.warning("the children cannot be looked at: %s", exc)
        time.sleep(POLL_S)
