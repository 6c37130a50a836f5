"""Memory, rate and neighbours of one large streamed request, against real scorer processes on this machine.

    python benchmarks/scorer_stream.py [--echo-pointers 100000] [--cpu-pointers 5000] [--vlm assets/in-context-vlm]

One `POST /score` with `Accept: application/x-ndjson` to the echo engine (no model: the service alone), one to the default engine
on one thread of the processor. Queries with 20 two-shot pointers each, out of random pools of 64, from `invented-words`; empty
databases. `growth_mib` is the largest resident set during the stream less the one before it, after a request of 40 pointers had
been answered. Meanwhile another client asks for single pointers of other queries, one after the other. Linux only.
Writes benchmarks/results/scorer_stream.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from provenance import RESULTS, ROOT, commit, machine
from scorer_cpu import NAME, PER_QUERY, TRAIN_ITEMS, draw_queries, wait_until_ready

from leverplus.client import ScorerClient
from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset
from leverplus.dataset.invented_words import generate
from leverplus.files import write_json
from leverplus.launcher import Ports, StackConfig
from leverplus.scoring import ScoreQuery, ScoreRequest
from pointer_trainer.scored_queries import AskedQuery

WANTED_MIB = 200
WARM_UP = 2
NEIGHBOUR = 400
"""Queries of the other clients: single pointers are asked of them."""
PAUSE_S = 0.2


@contextmanager
def serving(data: Path, vlm: Path, command: Sequence[str]) -> Generator[tuple[int, ScorerClient]]:
    """Process id and client of a scorer with an empty database."""
    ports = Ports.free()
    with tempfile.TemporaryDirectory() as folder:
        database = f"sqlite:///{folder}/store.sqlite"
        stack = StackConfig(data=data, vlm=vlm, ports=ports, devices=("cpu",), database_url=database)
        process = subprocess.Popen(
            [sys.executable, *command], env={**os.environ, **stack.environment("")}, stderr=subprocess.DEVNULL
        )
        try:
            with ScorerClient(stack.url(ports.scorer), timeout_s=300) as client:
                wait_until_ready(client)
                yield process.pid, client
        finally:
            process.terminate()
            process.wait(30)


def resident_mib(pid: int, name: str) -> float:
    """VmRSS, or VmHWM: the most since `forget_peak`."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def request(queries: Sequence[AskedQuery]) -> ScoreRequest:
    listed = [ScoreQuery(query_id=query.query_id, pointers=[list(pointer) for pointer in query.pointers]) for query in queries]
    return ScoreRequest(dataset=NAME, queries=listed)


class Neighbour:
    """Another client: asks for single pointers until told to stop."""

    def __init__(self, client: ScorerClient, queries: Sequence[AskedQuery]) -> None:
        self.seconds: list[float] = []
        self._asked = [AskedQuery(query.query_id, (pointer,)) for query in queries for pointer in query.pointers]
        self._client = client
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Neighbour:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        for query in self._asked:
            if self._stop.wait(PAUSE_S):
                return
            start = time.perf_counter()
            self._client.score(request([query]))
            self.seconds.append(time.perf_counter() - start)


def measure(pid: int, client: ScorerClient, queries: Sequence[AskedQuery], others: Sequence[AskedQuery]) -> dict[str, Any]:
    client.score(request(others[:WARM_UP]))
    asked = request(queries)
    before = resident_mib(pid, "VmRSS")
    forget_peak(pid)
    with Neighbour(client, others[WARM_UP:]) as neighbour:
        start = time.perf_counter()
        with client.score_stream(asked) as stream:
            answered = len(next(stream).candidates)
            first_line_s = time.perf_counter() - start
            answered += sum(len(line.candidates) for line in stream)
        seconds = time.perf_counter() - start
    peak = resident_mib(pid, "VmHWM")
    pointers = sum(len(query.pointers) for query in queries)
    if stream.stats is None or answered != pointers or stream.stats.cached:
        raise AssertionError(f"{answered} of {pointers} pointers, stats {stream.stats}")
    return {
        "pointers": pointers,
        "queries": len(queries),
        "request_mib": len(asked.model_dump_json()) / 2**20,
        "resident_before_mib": before,
        "resident_peak_mib": peak,
        "growth_mib": peak - before,
        "wanted_mib": WANTED_MIB,
        "met": peak - before <= WANTED_MIB,
        "seconds": seconds,
        "first_line_s": first_line_s,
        "pointers_per_s": pointers / seconds,
        "neighbour": {
            "requests": len(neighbour.seconds),
            "median_s": statistics.median(neighbour.seconds),
            "longest_s": max(neighbour.seconds),
        },
        "engine": client.stats()["engine"],
    }


def told(engine: str, row: dict[str, Any]) -> str:
    neighbour = row["neighbour"]
    return (
        f"{engine}: {row['pointers']} pointers in {row['seconds']:.1f} s ({row['pointers_per_s']:.0f}/s), first line after "
        f"{row['first_line_s']:.2f} s; {row['resident_before_mib']:.0f} MiB before, {row['resident_peak_mib']:.0f} at most, "
        f"{row['growth_mib']:.0f} more ({'at most' if row['met'] else 'NOT'} {WANTED_MIB}); {neighbour['requests']} single "
        f"pointers of another client took {neighbour['median_s']:.3f} s in the middle, {neighbour['longest_s']:.3f} at most"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vlm", type=Path, default=ROOT / "assets" / "in-context-vlm")
    parser.add_argument("--echo-pointers", type=int, default=100_000, help=f"whole queries of {PER_QUERY}")
    parser.add_argument("--cpu-pointers", type=int, default=5_000, help=f"whole queries of {PER_QUERY}")
    parser.add_argument("--out", type=Path, default=RESULTS / "scorer_stream.json")
    arguments = parser.parse_args()
    if min(arguments.echo_pointers, arguments.cpu_pointers) < PER_QUERY:
        parser.error(f"at least {PER_QUERY} pointers")
    before = machine()
    asked = {"echo": arguments.echo_pointers // PER_QUERY, "cpu": arguments.cpu_pointers // PER_QUERY}
    commands = {"echo": [str(ROOT / "benchmarks" / "echo_scorer.py")], "cpu": ["-m", "vqa_scorer"]}
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = DataRoot(Path(folder))
        count = NEIGHBOUR + max(asked.values())
        generate(root.dataset(NAME), name=NAME, train=TRAIN_ITEMS, val=1, test=count)
        queries = draw_queries(Dataset.open(root.dataset(NAME)), count)
        others, queries = queries[:NEIGHBOUR], queries[NEIGHBOUR:]
        for engine, number in asked.items():
            with serving(root.path, arguments.vlm, commands[engine]) as (pid, client):
                rows[engine] = row = measure(pid, client, queries[:number], others)
            print(told(engine, row))
    header = {"command": "python " + " ".join(sys.argv), "seed": 0, "machine": before, "commit": commit()}
    write_json(arguments.out, {**header, "rows": rows})


if __name__ == "__main__":
    main()
