"""Workers and scorers killed at random moments of generations: is anything lost, and how soon does another go on?

    python benchmarks/generation_kills.py [--rounds 4] [--seed 0]

Real processes: API, two workers, two scorers on the echo engine that wait 0.2 s with every batch, SQLite. First a generation that
nothing happens to: 120 queries in 12 shards. Then in each round, the scores being forgotten, a worker and a scorer get SIGKILL
at a random moment; the scorer is started again after 5 s, the worker at the end of the round. `taken_up_s`: from the kill of the
worker until the shard that it had was claimed by the other (null where it had none). Writes
benchmarks/results/generation_kills.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path
from random import Random
from typing import Any

from provenance import RESULTS, commit, machine
from trainer_processes import Trainer, wait_until, write_questions

from leverplus.files import write_json
from leverplus.store import Job

QUERIES, SHARDS = 120, 12
ASKED: dict[str, Any] = {"logging": {"draws": 4}, "pool": {"k": 16}, "shard_queries": QUERIES // SHARDS}
LONGEST_S = 30.0


def lines_of(trainer: Trainer, job: Job) -> list[bytes]:
    if job.result is None:
        raise RuntimeError(f"{job.id} has no result")
    return trainer.root.rl_data(job.result["rl_data_id"]).read_bytes().splitlines()[1:]


def kill_on_the_way(trainer: Trainer, number: int, random: Random, undisturbed: list[bytes]) -> dict[str, Any]:
    trainer.forget_scores()
    job_id = trainer.generate(key=f"round {number}", **ASKED)

    def children(status: str) -> list[Job]:
        return trainer.jobs.list(parent=job_id, status=status)

    wait_until(lambda: len(children("succeeded")) >= 1, "a shard is done")
    time.sleep(random.uniform(0, 4))
    worker, scorer = random.choice(trainer.workers), random.choice(trainer.scorers)
    had_parent = trainer.worker_of(job_id)[0] is worker
    orphans = [job for job in children("running") if trainer.worker_of(job.id)[0] is worker]
    done = {job.id for job in children("succeeded")}
    killed = time.monotonic()
    worker.kill()
    scorer.kill()
    restart = threading.Timer(5.0, scorer.start)
    restart.start()
    taken_up_s: float | None = None
    for orphan in orphans:
        wait_until(lambda at=orphan: trainer.jobs.get(at.id).lease_version > at.lease_version, "the shard is taken up")
        taken_up_s = round(time.monotonic() - killed, 1)
    ended = trainer.wait_for(job_id, "succeeded")
    restart.join()
    worker.start()
    return {
        "had_the_generation": had_parent,
        "shards_done_before": len(done),
        "taken_up_s": taken_up_s,
        "seconds_after_the_kill": round(time.monotonic() - killed, 1),
        "finished_shards_made_again": sum(job.lease_version > 1 for job in trainer.jobs.list(parent=job_id) if job.id in done),
        "same_lines": lines_of(trainer, ended) == undisturbed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    before, random, rounds = machine(), Random(arguments.seed), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        database = f"sqlite:///{folder / 'store.sqlite'}"
        with Trainer(folder, database, workers=2, scorers=2, scorer_delay_s=0.2) as trainer:
            write_questions(trainer.root, QUERIES, seed=arguments.seed)
            undisturbed = lines_of(trainer, trainer.wait_for(trainer.generate(key="undisturbed", **ASKED), "succeeded"))
            for number in range(arguments.rounds):
                rounds.append(kill_on_the_way(trainer, number, random, undisturbed))
                print(rounds[-1], flush=True)
    taken_up = [row["taken_up_s"] for row in rounds if row["taken_up_s"] is not None]
    found = {
        "queries": QUERIES,
        "shards": SHARDS,
        "rounds": rounds,
        "longest_taken_up_s": max(taken_up, default=None),
        "met": all(row["same_lines"] and not row["finished_shards_made_again"] for row in rounds)
        and max(taken_up, default=0.0) <= LONGEST_S,
    }
    header = {"command": "python " + " ".join(sys.argv), "seed": arguments.seed, "machine": before, "commit": commit()}
    write_json(RESULTS / "generation_kills.json", {**header, **found})


if __name__ == "__main__":
    main()
