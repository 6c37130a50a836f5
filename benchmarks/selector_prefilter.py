"""Seconds to answer one query from a pool of all candidates, exactly and behind an index; and what the index loses.

    python benchmarks/selector_prefilter.py [--pools 9009 100000 443757] [--queries 512] [--data .leverplus/demo]

A choice of four demonstrations as the service makes it, but for HTTP: pool, search, answer. Untrained selectors over vectors
drawn alike from the sphere, where no list of an index is nearer than another (the worst there is), and over vectors around N/100
centres. With --data also the checkpoint that is deployed there, over all candidates of its split: an index needs no other
training than the selector's. Recall and agreement are of queries that the index was not tuned on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from provenance import RESULTS, commit, machine
from rich.console import Console
from rich.table import Table
from selector_world import build_world

from leverplus.checkpoints import load_checkpoint, save_checkpoint
from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset
from leverplus.deployments import DEFAULT_ALIAS, read_deployment
from leverplus.embeddings import Embeddings
from leverplus.pools import PoolPolicy, pool_fingerprint
from leverplus.prefilter.building import PrefilterConfig, build_prefilter
from selector_api.answers import Way, select
from selector_api.serving import Query, Served

NAME = "benchmark"


def over_all_candidates(data: Path, folder: Path) -> tuple[DataRoot, str]:
    """A copy of the deployed checkpoint and its data whose pool is the whole split."""
    source, root = DataRoot(data), DataRoot(folder)
    tensors, info = load_checkpoint(source.checkpoint(read_deployment(source, DEFAULT_ALIAS).checkpoint_id))
    for part in ("datasets", "embeddings"):
        shutil.copytree(source.path / part / info.dataset, root.path / part / info.dataset)
    policy = PoolPolicy("all", candidate_split=info.pool_policy["candidate_split"])
    pool = pool_fingerprint(policy, Embeddings.open(root.embeddings(info.dataset)))
    whole = replace(info, pool_policy=policy.to_json(), fingerprint=replace(info.fingerprint, pool=pool))
    save_checkpoint(root.checkpoint(info.checkpoint_id), tensors, whole)
    return root, info.checkpoint_id


def median_ms(work: Callable[[int], object], times: int) -> float:
    found: list[float] = []
    for number in range(times):
        started = time.perf_counter()
        work(number)
        found.append(time.perf_counter() - started)
    return round(statistics.median(found) * 1e3, 3)


def measure(what: str, root: DataRoot, checkpoint_id: str, config: PrefilterConfig) -> dict[str, Any]:
    started = time.perf_counter()
    manifest = build_prefilter(root, checkpoint_id, NAME, config)
    built = time.perf_counter() - started
    tensors, info = load_checkpoint(root.checkpoint(checkpoint_id))
    dataset = Dataset.open(root.dataset(info.dataset))
    served = Served(tensors, info, dataset, Embeddings.open(root.embeddings(info.dataset)))
    prefilter = served.load_prefilter(root, NAME)
    asked = [Query(item_id) for item_id in dataset.split_ids("test")]
    shots = max(info.shots)

    def answer(way: Way) -> Callable[[int], object]:
        return lambda number: select(served, [asked[number % len(asked)]], way)

    exact, prefiltered = answer(Way("v3", shots, 1)), answer(Way("v3", shots, 1, (), prefilter))
    exact(0)
    prefiltered(0)
    candidates = manifest.sources.candidates
    return {
        "what": what,
        "candidates": candidates,
        "shots": shots,
        "exact_ms": median_ms(exact, max(20, 2_000_000 // candidates)),
        "prefiltered_ms": median_ms(prefiltered, 300),
        "lists": manifest.lists,
        "probes": manifest.probes,
        "handed_on": manifest.handed_on,
        "groups": manifest.groups,
        "measured": asdict(manifest.measured),
        "built_s": round(built, 1),
        "index_mib": round(sum(path.stat().st_size for path in root.prefilter(checkpoint_id, NAME).iterdir()) / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pools", type=int, nargs="+", default=[9_009, 100_000, 443_757])
    parser.add_argument("--queries", type=int, default=512)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS / "selector_prefilter.json")
    arguments = parser.parse_args()
    config, at_start = PrefilterConfig(queries=arguments.queries), machine()
    rows: list[dict[str, Any]] = []
    if arguments.data is not None:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure("trained", *over_all_candidates(arguments.data, Path(folder)), config))
    for pool in arguments.pools:
        for what, clusters in (("clustered", pool // 100), ("uniform", None)):
            with tempfile.TemporaryDirectory() as folder:
                world = build_world(Path(folder), candidates=pool, queries=2_000, pool=pool, clusters=clusters)
                rows.append(measure(what, world.root, f"ckpt-{pool}", config))
                print(json.dumps(rows[-1]), flush=True)
    table = Table(title="One answer, milliseconds, one thread")
    for name in ("vectors", "candidates", "exact", "prefiltered", "probes of lists", "recall", "agreement", "built, s", "MiB"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row["what"], f"{row['candidates']:,}", f"{row['exact_ms']:.1f}", f"{row['prefiltered_ms']:.2f}",
            f"{row['probes']} of {row['lists']}", f"{row['measured']['recall']:.3f}", f"{row['measured']['agreement']:.3f}",
            f"{row['built_s']:.0f}", f"{row['index_mib']:.0f}",
        )  # fmt: skip
    Console(width=120).print(table)
    given = " --data <the demo's>" if arguments.data is not None else ""
    result = {
        "command": f"python benchmarks/selector_prefilter.py --queries {arguments.queries}{given}",
        "seed": 0,
        "machine": at_start | {"load_1_min_at_end": round(os.getloadavg()[0], 2)},
        "commit": commit(),
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
