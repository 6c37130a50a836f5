"""Requests to a real selector process while its alias is swapped: errors, mixed answers, and how long a swap goes unseen.

    python benchmarks/selector_swaps.py [--requests 10000] [--swaps 50] [--connections 16]

Two checkpoints of drawn weights over drawn embeddings (K = 64, d_model 512); promotions and roll-backs in turn, evenly over the
requests. An answer counts as one checkpoint's if it has the items, pool and fingerprints, and log-probabilities to 1e-4, of what
that checkpoint, asked for by its id, answered before; nothing is tried again. Writes benchmarks/results/selector_swaps.json.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from provenance import RESULTS, commit, machine

from leverplus.checkpoints import FORMAT, CheckpointInfo, save_checkpoint
from leverplus.client import ServiceClient
from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset, DatasetInfo, Item, write_dataset
from leverplus.deployments import DEFAULT_ALIAS, promote, rollback
from leverplus.embeddings import Block, EmbeddingManifest, Embeddings
from leverplus.errors import LeverPlusError
from leverplus.files import write_json
from leverplus.fingerprint import Fingerprint
from leverplus.ids import ItemId
from leverplus.launcher.config import free_ports
from leverplus.pools import PoolPolicy, Pools
from leverplus.retrying import RetryPolicy
from leverplus.selection import Selection
from leverplus.selector.config import SelectorConfig, tensor_shapes
from leverplus.selector_client import AsyncSelectorClient

D_MODEL, TRAIN, QUERIES = 512, 2_000, 200
CHECKPOINTS = ("ckpt-first", "ckpt-second")
READY_LIMIT_S = 60.0
NEARLY = 1e-4


def write_data(root: DataRoot) -> None:
    items = [
        Item(ItemId(n), "train" if n < TRAIN else "test", None, str(n), str(n), f"question {n}", "a", ("a",) * 10)
        for n in range(TRAIN + QUERIES)
    ]
    write_dataset(root.dataset("drawn"), DatasetInfo("drawn", "1", "CC0-1.0", "simulated"), items)
    dataset = Dataset.open(root.dataset("drawn"))
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((len(items), D_MODEL)).astype(np.float32) / np.float32(D_MODEL**0.5)
    blocks = (Block("joint", 0, D_MODEL),)
    manifest = EmbeddingManifest({"name": "drawn"}, dataset.info.sha256, blocks, D_MODEL, len(items), "same", "encoders")
    embeddings = Embeddings(vectors, vectors, manifest)
    embeddings.save(root.embeddings("drawn"))
    config, policy = SelectorConfig(D_MODEL, num_layers=1, state_update="gate"), PoolPolicy("random", k=64)
    for checkpoint_id in CHECKPOINTS:
        tensors = {
            name: (generator.standard_normal(shape) / 16).astype(np.float32) for name, shape in tensor_shapes(config).items()
        }
        info = CheckpointInfo(
            checkpoint_id=checkpoint_id,
            format=FORMAT,
            selector=config.to_json(),
            dataset="drawn",
            pool_policy=policy.to_json(),
            shots=[2],
            fingerprint=Fingerprint(dataset.fingerprint(), Pools(dataset, embeddings, policy).fingerprint()),
            training={},
            rl_data=[],
            metrics={},
            code_version="benchmark",
            created_at="2026-01-01T00:00:00+00:00",
        )
        save_checkpoint(root.checkpoint(checkpoint_id), tensors, info)
    promote(root, DEFAULT_ALIAS, CHECKPOINTS[0], by="benchmark", reason="first")


@dataclass
class Tally:
    """What came of the requests. `latencies_s` of those that were answered."""

    answered: Counter[str] = field(default_factory=Counter[str])
    errors: list[str] = field(default_factory=list[str])
    mixed: int = 0
    latencies_s: list[float] = field(default_factory=list[float])
    sent: int = 0


def same(answer: Selection, other: Selection) -> bool:
    """But for the last bits of log-probabilities, which depend on what was answered together."""
    exact = all(answer[name] == other[name] for name in ("query_id", "pointer", "checkpoint", "pool", "fingerprint"))
    return exact and abs((answer["logprob"] or 0.0) - (other["logprob"] or 0.0)) < NEARLY


async def run(root: DataRoot, url: str, requests: int, swaps: int, connections: int) -> Tally:
    tally = Tally()
    query_ids = range(TRAIN, TRAIN + QUERIES)
    once = RetryPolicy(attempts=1)
    async with AsyncSelectorClient(url, connections=connections, retry=once) as client:
        expected: dict[tuple[str, int], Selection] = {}
        for checkpoint_id in CHECKPOINTS:
            answers = await client.select_many([{"query_id": n} for n in query_ids], checkpoint=checkpoint_id)
            expected |= {(checkpoint_id, n): answer for n, answer in zip(query_ids, answers, strict=True)}

        async def worker() -> None:
            while tally.sent < requests:
                query_id = query_ids[tally.sent % QUERIES]
                tally.sent += 1
                begun = time.perf_counter()
                try:
                    answer = await client.select(query_id)
                except LeverPlusError as exc:
                    tally.errors.append(str(exc))
                    continue
                tally.latencies_s.append(time.perf_counter() - begun)
                tally.answered[answer["checkpoint"]] += 1
                tally.mixed += not same(answer, expected[answer["checkpoint"], query_id])

        async def swapper() -> None:
            for number in range(swaps):
                while tally.sent < (number + 1) * requests // (swaps + 1):
                    await asyncio.sleep(0.001)
                if number % 2:
                    await asyncio.to_thread(rollback, root, DEFAULT_ALIAS, "benchmark")
                else:
                    target = CHECKPOINTS[(number // 2 + 1) % 2]
                    await asyncio.to_thread(promote, root, DEFAULT_ALIAS, target, by="benchmark", reason="swapped")

        await asyncio.gather(swapper(), *(worker() for _ in range(connections)))
    return tally


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + READY_LIMIT_S
    with ServiceClient(url) as client:
        while True:
            try:
                return client.ready()
            except LeverPlusError:
                if process.poll() is not None or time.monotonic() > end:
                    raise
            time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("requests", 10_000), ("swaps", 50), ("connections", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        root = DataRoot(Path(folder))
        write_data(root)
        variables = {"LEVERPLUS_DATA": folder, "LEVERPLUS_SELECTOR_PORT": str(port)}
        command = [sys.executable, "-m", "selector_api"]
        process = subprocess.Popen(command, env={**os.environ, **variables}, stderr=subprocess.DEVNULL)
        try:
            wait_until_ready(url, process)
            begun = time.perf_counter()
            tally = asyncio.run(run(root, url, arguments.requests, arguments.swaps, arguments.connections))
            seconds = time.perf_counter() - begun
        finally:
            process.terminate()
            process.wait(30)
    latencies = np.asarray(tally.latencies_s)
    result: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/selector_swaps.py", *sys.argv[1:]]),
        "machine": machine(),
        "commit": commit(),
        **vars(arguments),
        "answered": dict(sorted(tally.answered.items())),
        "errors": len(tally.errors),
        "first_errors": tally.errors[:5],
        "answers_of_no_checkpoint": tally.mixed,
        "seconds": seconds,
        "latency_s": {"p50": float(np.quantile(latencies, 0.5)), "p99": float(np.quantile(latencies, 0.99)),
                      "longest": float(latencies.max())},
    }  # fmt: skip
    write_json(RESULTS / "selector_swaps.json", result)
    print(f"{arguments.requests} requests, {arguments.swaps} swaps: {dict(tally.answered)}, {len(tally.errors)} errors, "
          f"{tally.mixed} answers of no checkpoint, {seconds:.1f} s")  # fmt: skip


if __name__ == "__main__":
    main()
