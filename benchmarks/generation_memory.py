"""Memory of a worker that generates RL data of many queries: is it flat in their number?

    python benchmarks/generation_memory.py [--queries 20000 40000]

Real processes: API, one worker, one scorer on the echo engine (no model), SQLite. One dataset of the largest number of items, of
which each run takes so many queries: shards of 500, 3 pointers a query, random pools of 64. Scores are forgotten between them.
Sampled twice a second: the worker's own memory (RssAnon of the process that does the job; pages of mapped files are the page
cache's). `growth_mib` is the largest sample less the one when the first queries were done, dataset, embeddings and torch being
there by then; `while_scoring_mib` without putting the file together and reporting on it. Linux only.
Writes benchmarks/results/generation_memory.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from provenance import RESULTS, commit, machine
from trainer_processes import Trainer, wait_until, write_questions

from leverplus.files import write_json
from leverplus.store.jobs import TERMINAL

WANTED_MIB = 300
EVERY_S = 0.5
ASKED: dict[str, Any] = {"num_beams": 1, "num_samples_per_temp": 0, "num_random": 1, "num_retrieval": 0}


def own_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


def measure(trainer: Trainer, queries: int, limit_s: float) -> dict[str, Any]:
    trainer.forget_scores()
    start = time.perf_counter()
    job_id = trainer.generate(key=f"memory {queries}", queries=queries, **ASKED)
    wait_until(lambda: (trainer.jobs.get(job_id).progress or {}).get("step"), "the first queries are scored", limit_s=limit_s)
    pid = trainer.worker_of(job_id)[1]
    before = own_mib(pid)
    largest = {"score": before}
    shards: list[float] = []
    while (job := trainer.jobs.get(job_id)).status not in TERMINAL:
        if time.perf_counter() - start > limit_s:
            raise TimeoutError(f"{job_id}: {job.progress} after {limit_s:.0f} s")
        now, progress = own_mib(pid), job.progress or {}
        phase = str(progress.get("phase"))
        largest[phase] = max(now, largest.get(phase, 0.0))
        # One sample for each tenth of the shards: is there a trend?
        if phase == "score" and progress["step"] >= queries * (len(shards) + 1) / 10:
            shards.append(round(now, 1))
        time.sleep(EVERY_S)
    if job.result is None:
        raise RuntimeError(f"{job_id} is {job.status}: {job.error}")
    growth = max(largest.values()) - before
    path = trainer.root.rl_data(job.result["rl_data_id"])
    row = {
        "queries": queries,
        "pointers": job.result["scores"]["scored"],
        "shards": job.result["shards"],
        "file_mib": round(path.stat().st_size / 2**20, 1),
        "seconds": round(time.perf_counter() - start, 1),
        "before_mib": round(before, 1),
        "while_scoring_mib": round(largest["score"] - before, 1),
        "growth_mib": round(growth, 1),
        "own_mib_at_each_tenth": shards,
        "wanted_mib": WANTED_MIB,
        "met": growth <= WANTED_MIB,
    }
    path.unlink()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, nargs="+", default=[20_000, 40_000])
    parser.add_argument("--limit-s", type=float, default=3600.0, help="for each number of queries")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    before, rows = machine(), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Trainer(folder, f"sqlite:///{folder / 'store.sqlite'}", workers=1, scorers=1) as trainer:
            write_questions(trainer.root, max(arguments.queries), seed=arguments.seed)
            for queries in arguments.queries:
                rows.append(measure(trainer, queries, arguments.limit_s))
                print({key: value for key, value in rows[-1].items() if key != "own_mib_at_each_tenth"}, flush=True)
    header = {"command": "python " + " ".join(sys.argv), "seed": arguments.seed, "machine": before, "commit": commit()}
    write_json(RESULTS / "generation_memory.json", {**header, "rows": rows})


if __name__ == "__main__":
    main()
