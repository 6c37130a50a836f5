"""Mixed load on `leverplus up` while its processes are killed: is every request accounted for, and is anything lost?

    python benchmarks/reliability.py [--data FOLDER] [--capacity-s 30] [--calm-s 600] [--seconds 300] [--every-s 20] [--seed 0]

The real services with the demo's data and VLM. A closed loop of 16 connections measures the capacity of the mix; then requests
arrive at 80 % of it, at times and in an order drawn from the seed, each sent once, at most 256 at a time. After ten calm
minutes, in which caches fill and a leak would show, one process gets SIGKILL every 20 s. Two jobs are kept unfinished
meanwhile, asked for under Idempotency-Keys until accepted.
Writes benchmarks/results/reliability.json; exits with 1 where something is wrong, lost or doubled.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
from provenance import RESULTS, ROOT, commit, machine
from reliability_account import Account, Answer
from reliability_lives import Lives

from leverplus.data_root import DataRoot
from leverplus.demo.ready_made import import_demo
from leverplus.embeddings import Embeddings
from leverplus.files import remove_left_over, write_json
from leverplus.launcher import Ports

DATASET = "invented-words-demo"
VICTIMS = ("vqa_scorer", "pointer_trainer.worker", "selector_api", "pointer_trainer", "valkey")
TRAIN, QUERIES = range(1000), range(1000, 1200)
CONNECTIONS, MOST_AT_ONCE, SHARE, JOBS_AT_ONCE = 16, 256, 0.8, 2
TIMEOUT_S, JOBS_END_S = 30.0, 240.0
MIX = {
    "select": 40,
    "select again": 20,
    "messages": 5,
    "select many": 5,
    "select embedding": 5,
    "score": 20,
    "jobs": 6,
    "deployments": 4,
}


@dataclass
class Load:
    """Requests to one stack, and what came of them. `scored`: what may be asked for again."""

    urls: Mapping[str, str]
    rl_data: str
    vectors: npt.NDArray[np.float32]
    draw: Random
    account: Account = field(default_factory=Account)
    scored: list[tuple[int, tuple[int, ...]]] = field(default_factory=list[tuple[int, tuple[int, ...]]])

    def request(self) -> tuple[str, str, str, dict[str, Any]]:
        """Kind, service, method and what else httpx is to be given."""
        kind = self.draw.choices(list(MIX), list(MIX.values()))[0]
        query = self.draw.choice(QUERIES)
        if kind in ("select", "select again"):
            beam = 1 if kind == "select again" else self.draw.randint(1, 8)
            return kind, "selector_api", "GET", {"url": "/select", "params": {"query_id": query, "beam": beam}}
        if kind == "messages":
            return kind, "selector_api", "GET", {"url": "/messages", "params": {"query_id": query}}
        if kind == "select many":
            queries = [{"query_id": each} for each in self.draw.sample(QUERIES, 8)]
            return kind, "selector_api", "POST", {"url": "/select", "json": {"queries": queries}}
        if kind == "select embedding":
            vector = self.vectors[self.draw.randrange(len(self.vectors))]
            unseen = [number + self.draw.gauss(0.0, 0.01) for number in vector.tolist()]
            return kind, "selector_api", "POST", {"url": "/select", "json": {"queries": [{"embedding": unseen}]}}
        if kind == "score":
            fresh = (query, tuple(self.draw.sample(TRAIN, self.draw.randint(0, 2))))
            pairs = [fresh, *self.draw.sample(self.scored, min(3, len(self.scored)))]
            queries = [{"query_id": each, "pointers": [pointer]} for each, pointer in pairs]
            return kind, "vqa_scorer", "POST", {"url": "/score", "json": {"dataset": DATASET, "queries": queries}}
        return kind, "pointer_trainer", "GET", {"url": f"/{kind}"}

    async def send(self, client: httpx.AsyncClient) -> None:
        """One request, sent once."""
        kind, service, method, arguments = self.request()
        url = self.urls[service] + arguments.pop("url")
        begun = time.monotonic()
        try:
            found = await client.request(method, url, **arguments)
            answer = Answer(found.status_code, found.headers.get("content-type", ""), found.content)
        except httpx.TransportError as exc:
            answer = Answer.none(exc)
        self.account.add(kind, service, begun, time.monotonic(), answer)
        if kind == "score" and answer.status == 200:
            sent: list[dict[str, Any]] = arguments["json"]["queries"]
            self.scored += [(each["query_id"], tuple(each["pointers"][0])) for each in sent[:1]]


async def capacity(load: Load, seconds: float) -> float:
    """Requests a second of the mix, one after another on every connection."""
    end, sent = time.monotonic() + seconds, 0

    async def one(client: httpx.AsyncClient) -> None:
        nonlocal sent
        while time.monotonic() < end:
            await load.send(client)
            sent += 1

    async with new_client() as client:
        await asyncio.gather(*(one(client) for _ in range(CONNECTIONS)))
    return sent / seconds


async def open_loop(load: Load, rate: float, seconds: float) -> int:
    """Sends at times drawn beforehand, whatever is answered; how many were not sent because too many were under way."""
    times, now = [], 0.0
    while (now := now + load.draw.expovariate(rate)) < seconds:
        times.append(now)
    begun, not_sent = time.monotonic(), 0
    under_way: set[asyncio.Task[None]] = set()
    async with new_client() as client:
        for moment in times:
            await asyncio.sleep(max(0.0, begun + moment - time.monotonic()))
            if len(under_way) >= MOST_AT_ONCE:
                not_sent += 1
                continue
            task = asyncio.create_task(load.send(client))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        await asyncio.gather(*under_way)
    return not_sent


def new_client() -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=MOST_AT_ONCE, max_keepalive_connections=MOST_AT_ONCE)
    return httpx.AsyncClient(timeout=TIMEOUT_S, limits=limits, trust_env=False)


async def keep_jobs(load: Load, jobs: dict[str, str], seconds: float) -> None:
    """Keeps JOBS_AT_ONCE jobs unfinished: trainings and generations in turn. `jobs`: key -> id of those that were accepted."""
    end = time.monotonic() + seconds
    async with httpx.AsyncClient(base_url=load.urls["pointer_trainer"], timeout=TIMEOUT_S, trust_env=False) as client:
        while time.monotonic() < end:
            with suppress(httpx.TransportError, ValueError, KeyError):
                listed = (await client.get("/jobs")).json()["jobs"]
                if sum(job["status"] in ("queued", "running") for job in listed) < JOBS_AT_ONCE:
                    number = len(jobs)
                    config = {"rce_epochs": 6, "hidden_dim": 64, "seed": number}
                    path, body = "/train", {"rl_data": [load.rl_data], "config": config}
                    if number % 2:
                        path, body = "/rl-data/generate", {"dataset": DATASET, "queries": 8, "shots": [1], "seed": number}
                    answer = await client.post(path, json=body, headers={"Idempotency-Key": f"job {number}"})
                    jobs[f"job {number}"] = answer.json()["job_id"]
            await asyncio.sleep(0.5)


async def kill(load: Load, data: Path, every_s: float, seconds: float) -> list[dict[str, Any]]:
    """Rounds of all victims, each round in an order of its own; how long each was away."""
    order: list[str] = []
    while len(order) < seconds / every_s:
        order += load.draw.sample(VICTIMS, len(VICTIMS))
    kills: list[dict[str, Any]] = []
    begun = time.monotonic()
    for number, victim in enumerate(order):
        moment = (number + 0.5) * every_s
        if moment >= seconds:
            break
        await asyncio.sleep(begun + moment - time.monotonic())
        killed = time.monotonic()
        os.kill(pids(data)[victim], signal.SIGKILL)
        load.account.down(victim, killed)
        await until_back(load, data, victim)
        load.account.up(victim, time.monotonic())
        kills.append({"victim": victim, "at_s": round(moment, 1), "away_s": round(time.monotonic() - killed, 2)})
        print(kills[-1], flush=True)
    return kills


async def until_back(load: Load, data: Path, victim: str) -> None:
    """Until the service says that it is ready; broker and worker: until the trainer hears the one, the other has a pid again."""
    killed = pids(data).get(victim)
    service = victim if victim in load.urls else "pointer_trainer"
    await asyncio.sleep(0.3)
    async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
        for _ in range(600):
            with suppress(httpx.TransportError):
                if victim == "pointer_trainer.worker" and pids(data).get(victim) == killed:
                    await asyncio.sleep(0.1)
                    continue
                if (await client.get(f"{load.urls[service]}/health/ready")).status_code == 200:
                    return
            await asyncio.sleep(0.05)
    raise TimeoutError(f"{victim} did not come back")


def pids(data: Path) -> dict[str, int]:
    found = {entry["name"]: entry["pid"] for entry in json.loads((data / "processes.json").read_text())}
    return {**found, "valkey": int((data / "valkey" / "valkey.pid").read_text())}


def judge_store(data: Path, account: Account) -> dict[str, int]:
    """Answered scores that are not in the database as they were answered, and scores that are there twice."""
    with sqlite3.connect(data / "store.sqlite") as connection:
        rows = list(connection.execute("SELECT query_id, pointer, raw_text FROM scores"))
    held = {(query, pointer): text for query, pointer, text in rows}
    return {
        "scores_answered": len(account.scores),
        "scores_lost": sum(held.get(name) != text for name, text in account.scores.items()),
        "scores_doubled": len(rows) - len(held),
    }


async def judge_jobs(load: Load, data: Path, jobs: Mapping[str, str]) -> dict[str, Any]:
    """Waits for all jobs; those that did not succeed, and what was made twice."""
    end, rows = time.monotonic() + JOBS_END_S, []
    while time.monotonic() < end:
        with sqlite3.connect(data / "store.sqlite") as connection:
            rows = list(connection.execute("SELECT id, kind, status, result FROM jobs WHERE parent IS NULL"))
        if all(status not in ("queued", "running") for _, _, status, _ in rows):
            break
        await asyncio.sleep(0.5)
    states = {job: status for job, _, status, _ in rows}
    made = Counter(
        str(json.loads(result).get("checkpoint_id") or json.loads(result)["rl_data_id"]) for *_, result in rows if result
    )
    return {
        "jobs_accepted": len(jobs),
        "jobs_lost": sum(states.get(job) != "succeeded" for job in jobs.values()),
        "jobs_doubled": len(rows) - len(jobs) + sum(count - 1 for count in made.values()),
    }


def judge_files(data: Path) -> dict[str, Any]:
    """Temporary files that killed writers left, and how many of them the clean-up at the next start does."""
    left = sorted(str(path.relative_to(data)) for path in data.rglob(".*.tmp"))
    remove_left_over(data, older_than_s=0.0)
    return {"temporary_files": left, "temporary_files_kept": len([*data.rglob(".*.tmp")])}


async def measure(load: Load, data: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    rate = SHARE * await capacity(load, arguments.capacity_s)
    print(f"{rate:.1f} requests/s are {SHARE:.0%} of capacity", flush=True)
    load.account = Account(answers=load.account.answers, scores=load.account.scores)
    jobs: dict[str, str] = {}
    lives, seconds = Lives(), arguments.calm_s + arguments.seconds

    async def watch() -> None:
        while True:
            # A file is gone while its process is started again.
            with suppress(FileNotFoundError, ValueError):
                lives.look(pids(data), time.monotonic())
            await asyncio.sleep(1)

    async def kill_later() -> list[dict[str, Any]]:
        await asyncio.sleep(arguments.calm_s)
        return await kill(load, data, arguments.every_s, arguments.seconds)

    watching = asyncio.create_task(watch())
    not_sent, kills, _ = await asyncio.gather(open_loop(load, rate, seconds), kill_later(), keep_jobs(load, jobs, seconds))
    watching.cancel()
    settled = await judge_jobs(load, data, jobs)
    latencies = np.asarray(load.account.calm_latencies_s())
    return {
        "rate_per_s": round(rate, 1),
        "not_sent": not_sent,
        "kills": kills,
        **load.account.told(),
        **settled,
        **judge_store(data, load.account),
        "calm_latency_s": {"p50": float(np.quantile(latencies, 0.5)), "p99": float(np.quantile(latencies, 0.99))},
        "lives": lives.told(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder that `leverplus import demo` filled; made anew if absent")
    for name, default in (("capacity-s", 30.0), ("calm-s", 600.0), ("seconds", 300.0), ("every-s", 20.0)):
        parser.add_argument(f"--{name}", type=float, default=default)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        data = (arguments.data or Path(name)).resolve()
        import_demo(DataRoot(data), ROOT / "assets" / "demo", report=print)
        ports = Ports.free()
        numbers = {"vqa_scorer": ports.scorer, "pointer_trainer": ports.trainer, "selector_api": ports.selector}
        options = [
            f"--{kind}-port={port}" for kind, port in zip(("scorer", "trainer", "selector"), numbers.values(), strict=True)
        ]
        program = [sys.executable, "-c", "from leverplus.cli import app; app()", "up", "--data", str(data), *options]
        launcher = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
        try:
            assert launcher.stdout is not None, "a pipe"
            while "^C stops everything" not in (line := launcher.stdout.readline()):
                if not line:
                    sys.exit("the services did not start")
            rl_data = next((data / "rl-data").glob("*.ndjson")).stem
            urls = {name: f"http://127.0.0.1:{port}" for name, port in numbers.items()}
            vectors = Embeddings.open(DataRoot(data).embeddings(DATASET)).query
            load = Load(urls, rl_data, vectors, Random(arguments.seed))
            found = asyncio.run(measure(load, data, arguments))
        finally:
            launcher.terminate()
            launcher.wait(60)
        found |= judge_files(data)
    # Not the folder, which is of one machine.
    named = ("capacity_s", "calm_s", "seconds", "every_s")
    options = " ".join(f"--{name.replace('_', '-')} {getattr(arguments, name):g}" for name in named)
    command = f"python benchmarks/reliability.py {options}"
    header = {"command": command, "seed": arguments.seed, "machine": machine(), "commit": commit()}
    write_json(RESULTS / "reliability.json", {**header, "calm_s": arguments.calm_s, "seconds": arguments.seconds, **found})
    print(json.dumps(found, indent=1))
    if found["outcomes"].get("wrong") or any(found[name] for name in found if name.endswith(("_lost", "_doubled", "_kept"))):
        sys.exit("a promise was broken: see the result")


if __name__ == "__main__":
    main()
