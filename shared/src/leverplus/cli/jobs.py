"""Commands on jobs: list, show, cancel, resume, delete-run; and waiting for one, which may be left at any time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from leverplus.cli.options import TRAINER, DryRun, Json, TrainerUrl, service_key

JOB_LIMIT_S = 7 * 24 * 3600.0

app = typer.Typer(help="Jobs of the trainer.", no_args_is_help=True)

JobId = Annotated[str, typer.Argument(help="Id of the job.")]


@app.command("list")
def list_command(as_json: Json = False, trainer_url: TrainerUrl = TRAINER) -> None:
    """The newest jobs first."""
    from leverplus.cli.output import print_json, print_table
    from leverplus.client import TrainerClient

    with TrainerClient(trainer_url, key=service_key()) as client:
        jobs = client.jobs()
    if as_json:
        print_json(jobs)
        return
    print_table(None, ("job", "kind", "status", "progress"), ((job["id"], job["kind"], job["status"], _at(job)) for job in jobs))


@app.command()
def show(job_id: JobId, as_json: Json = False, trainer_url: TrainerUrl = TRAINER) -> None:
    """A job as it stands: progress, then its result or what made it fail."""
    from leverplus.client import TrainerClient

    with TrainerClient(trainer_url, key=service_key()) as client:
        _say(client.job(job_id), as_json)


@app.command()
def cancel(job_id: JobId, as_json: Json = False, trainer_url: TrainerUrl = TRAINER) -> None:
    """End a job; what it has scored is kept. One that has ended stays as it is."""
    from leverplus.client import TrainerClient

    with TrainerClient(trainer_url, key=service_key()) as client:
        _say(client.cancel(job_id), as_json)


@app.command()
def resume(job_id: JobId, as_json: Json = False, trainer_url: TrainerUrl = TRAINER) -> None:
    """Queue a failed or cancelled job again."""
    from leverplus.client import TrainerClient

    with TrainerClient(trainer_url, key=service_key()) as client:
        client.resume(job_id)
        _say(client.job(job_id), as_json)


@app.command("delete-run")
def delete_run_command(job_id: JobId, dry_run: DryRun = False, trainer_url: TrainerUrl = TRAINER) -> None:
    """Delete the run directory of a job that has ended: log, metrics, curves, reports, training state."""
    from leverplus.cli.output import shown_bytes
    from leverplus.client import TrainerClient

    with TrainerClient(trainer_url, key=service_key()) as client:
        deleted = client.delete_run(job_id, dry_run=dry_run)
    print(f"{'would delete' if dry_run else 'deleted'} the run of {job_id}, {shown_bytes(deleted['bytes'])}")


def finish_job(
    client: Any, job_id: str, title: str, *, wait: bool, as_json: bool, show: Callable[[Mapping[str, Any]], None]
) -> None:
    """Waits for a job and shows its result, by `show` or as JSON alone; prints only its id without `wait`.

    ^C leaves the job running and says so: exit code 130.
    """
    from leverplus.cli.job_progress import watch_job
    from leverplus.cli.output import print_json

    if not wait:
        print(job_id)
        return
    # On stderr: stdout is the result's.
    print(f"job {job_id}; `leverplus jobs cancel {job_id}` ends it", file=sys.stderr, flush=True)
    try:
        if as_json:
            print_json(client.wait(job_id, limit_s=JOB_LIMIT_S))
        else:
            show(watch_job(client, job_id, title, limit_s=JOB_LIMIT_S, note=lambda _result: job_id))
    except KeyboardInterrupt:
        print(
            f"job {job_id} goes on; `leverplus jobs show {job_id}` tells how far it is, `leverplus jobs cancel {job_id}` ends it",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None


def show_made(result: Mapping[str, Any]) -> None:
    """The id of what a job made, in a line, and below it what is to be known about it."""
    from leverplus.cli.output import print_values

    for key, name in (("rl_data_id", "rl_data_id"), ("checkpoint_id", "checkpoint")):
        if key in result:
            print(f"{name} {result[key]}")
    print_values({name: value for name, value in result.items() if name not in ("rl_data_id", "checkpoint_id", "fingerprint")})


def _say(job: Mapping[str, Any], as_json: bool) -> None:
    from leverplus.cli.output import print_json, print_values

    if as_json:
        print_json(job)
        return
    print(f"{job['id']}  {job['kind']}  {job['status']}  {_at(job)}".rstrip())
    if job.get("error"):
        print(f"error: {job['error'].get('detail')}")
    result = job.get("result") or {}
    if "markdown" in result:  # a report: its numbers stand in its tables
        print(result["markdown"])
    elif result:
        print_values(result)


def _at(job: Mapping[str, Any]) -> str:
    progress = job.get("progress") or {}
    total = progress.get("total")
    return " ".join(filter(None, [progress.get("phase"), f"{progress.get('step')}/{total}" if total else ""]))
