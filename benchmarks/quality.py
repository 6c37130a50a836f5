"""What selectors reach on invented-words, exactly: trained on rewards of assets/reward-table, judged on one of its splits.

    leverplus import invented-words --data DATA && leverplus embed invented-words --data DATA
    python benchmarks/quality.py main --data DATA --split test --seeds 5

Each system is trained under several seeds on the candidates that it or an untrained selector proposes for the first train
queries, with the table's rewards: a look into the table is a VLM call. Judged by the accuracy of the greedy pointer at one and
two shots, which the table holds, where asked at three and four, which its VLM is asked for, and by the share of the headroom that
it closes at two:
(selector − random) / (structural oracle − random).
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import shlex
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from provenance import ROOT, commit, machine
from quality_systems import TABLES, System
from reward_world import LONGEST, Material, open_material, scored, training

from leverplus.dataset.invented_words import sufficient_pointer
from leverplus.files import write_json
from leverplus.ids import ItemId
from leverplus.policies import similar_positions
from leverplus.rl_data import RlData
from leverplus.selector import Selector, selector_from_checkpoint
from pointer_trainer.proposals import initialised_selector, propose
from pointer_trainer.requests import GenerateRequest

Floats = npt.NDArray[np.float64]
KINDS: tuple[Literal["image", "text", "joint"], ...] = ("image", "text", "joint")


def trained(system: System, data: Sequence[RlData], material: Material, seed: int) -> Selector:
    """The selector of the system's phase, or the one that the run recommends."""
    with training({**system.config, "seed": seed}, data, material) as (folder, result):
        return selector_from_checkpoint(
            folder / (result.checkpoint_id if system.phase is None else result.checkpoints[system.phase])
        )


def chosen(selector: Selector, split: str, material: Material, judged_at: Sequence[int]) -> dict[int, Floats]:
    """Accuracy of the greedy pointer for each query of the table's split, at each number of shots."""
    table = material.tables[split]
    queries = [ItemId(int(one)) for one in table.query_ids]
    pools = np.stack([material.pools.pool(one) for one in queries])
    found: dict[int, list[npt.NDArray[np.int64]]] = {shots: [] for shots in judged_at}
    for start in range(0, len(queries), 100):
        query = torch.from_numpy(material.embeddings.query[queries[start : start + 100]])
        pool = torch.from_numpy(material.embeddings.candidate[pools[start : start + 100]])
        for shots, values in found.items():
            values.append(selector.select(query, pool, shots).positions.numpy())
    positions = {shots: np.concatenate(values) for shots, values in found.items()}
    return {
        shots: table.chosen(values) if shots <= LONGEST else asked(material, queries, np.take_along_axis(pools, values, axis=1))
        for shots, values in positions.items()
    }


def asked(material: Material, queries: Sequence[ItemId], pointers: npt.NDArray[np.int64]) -> Floats:
    """What the VLM's own answers to pointers [Q, S] of item ids are worth."""
    pairs = [
        (query_id, tuple(ItemId(one) for one in pointer)) for query_id, pointer in zip(queries, pointers.tolist(), strict=True)
    ]
    material.live.ask(pairs)
    return np.array([material.live.reward(*pair) for pair in pairs])


def packed(accuracies: Floats) -> str:
    """A digit a query: tenths of accuracy, 10 of 10 as X."""
    return "".join("X" if tenths == 10 else str(tenths) for tenths in np.rint(accuracies * 10).astype(int).tolist())


def unpacked(digits: str) -> Floats:
    return np.array([10 if digit == "X" else int(digit) for digit in digits]) / 10


@dataclass(frozen=True)
class Run:
    table: str
    name: str
    system: System
    seed: int
    queries: int
    at_most: int | None
    split: str


def run(job: Run) -> dict[str, Any]:
    """One system under one seed; a row for each state that is judged: after every round."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    material, table = _MATERIAL[0], _MATERIAL[0].tables["train"]
    query_ids = [ItemId(int(one)) for one in table.query_ids[: job.queries]]
    selector, _ = initialised_selector(material.embeddings.manifest.d_model, 0)
    data: list[RlData] = []
    rows: list[dict[str, Any]] = []
    began = time.perf_counter()
    for number, proposed in enumerate((job.system.first, *job.system.rounds)):
        request = GenerateRequest(dataset="invented-words", **proposed, seed=job.seed if number else 0)
        proposals = propose(selector, material.embeddings, material.pools, query_ids, request)
        data.append(scored(proposals, table, material, at_most=job.at_most, seed=job.seed, info_score=job.system.info_score))
        selector = trained(job.system, data, material, job.seed)
        judged = chosen(selector, job.split, material, job.system.judged_at)
        calls = len({(record.query_id, one.pointer) for part in data for record in part.records for one in record.candidates})
        rows.append(
            {"round": number, "vlm_calls": calls, "accuracies": {str(shots): packed(part) for shots, part in judged.items()}}
        )
    return {
        "table": job.table, "system": job.name, "seed": job.seed, "queries": job.queries, "at_most": job.at_most,
        "seconds": round(time.perf_counter() - began, 1), "rows": rows,
    }  # fmt: skip


_MATERIAL: list[Material] = []
"""Filled before processes are forked."""


def references(material: Material, split: str) -> dict[str, Floats]:
    """Per query at two shots: random choice, the most similar items, and the structural oracle (random where no pointer
    of the pool tells)."""
    table, embeddings = material.tables[split], material.embeddings
    rand = table.random(2)
    oracle = rand.copy()
    similar: dict[str, Floats] = {}
    for kind in KINDS:
        positions = [
            similar_positions(
                embeddings.query[query_id],
                embeddings.candidate[material.pools.pool(ItemId(query_id))],
                embeddings.manifest.blocks,
                kind,
                2,
            )
            for query_id in table.query_ids.tolist()
        ]
        similar[f"similar-{kind}"] = table.chosen(np.array(positions))
    for row, query_id in enumerate(table.query_ids.tolist()):
        pool = [int(item_id) for item_id in material.pools.pool(ItemId(query_id))]
        pointer = sufficient_pointer(material.structures[query_id], [material.structures[item_id] for item_id in pool], 2)
        if pointer is not None:
            oracle[row] = table.reward(query_id, [pool.index(item_id) for item_id in pointer])
    return {"random": rand, **similar, "oracle": oracle}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", choices=list(TABLES))
    parser.add_argument("--data", type=Path, default=ROOT / ".leverplus", help="data root that holds dataset and embeddings")
    parser.add_argument("--split", choices=("val", "test"), default="val", help="test is for the last run")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="systems whose names contain one of these")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the VLM, where it is asked itself")
    parser.add_argument("--out", type=Path, help="JSON file")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    at_start = machine()
    material = open_material(arguments.data, arguments.device)
    _MATERIAL.append(material)
    jobs = [
        Run(table, name, system, seed, queries, at_most, arguments.split)
        for table in arguments.tables
        for seed in range(arguments.seeds)
        for name, system, queries, at_most in TABLES[table]
        if not arguments.only or any(part in name for part in arguments.only)
    ]
    judged_on = [ItemId(int(one)) for one in material.tables[arguments.split].query_ids]
    found: list[dict[str, Any]] = []
    bounds = references(material, arguments.split)
    low, high = bounds["random"].mean(), bounds["oracle"].mean()

    def record() -> None:
        report = {
            "command": shlex.join(["python", *sys.argv]), "commit": commit(), "machine": at_start, "split": arguments.split,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu", "runs_planned": len(jobs),
            "fingerprint": {
                "dataset": material.dataset.fingerprint(), "embeddings": material.embeddings.fingerprint(),
                "pools": material.pools.fingerprint(), "reward_table": {
                    split: table.header["splits"][split]["sha256"] for split, table in material.tables.items()
                },
            },
            "systems": {f"{job.table}: {job.name}": asdict(job.system) for job in jobs},  # tables share names
            "images": [material.dataset.item(query_id).image_id for query_id in judged_on],
            "families": [material.structures[query_id].family for query_id in judged_on],
            "references": {name: np.round(values, 4).tolist() for name, values in bounds.items()},
            "runs": sorted(found, key=lambda one: (one["table"], one["system"], one["queries"], one["seed"])),
        }  # fmt: skip
        write_json(arguments.out, report)

    with ProcessPoolExecutor(arguments.processes, multiprocessing.get_context("fork")) as workers:
        for done in as_completed([workers.submit(run, job) for job in jobs]):
            found.append(done.result())
            one = found[-1]
            for row in one["rows"]:
                means = {shots: float(unpacked(values).mean()) for shots, values in row["accuracies"].items()}
                closed = (means["2"] - low) / (high - low)
                what = f"{one['table']}: {one['system']}, seed {one['seed']}, {one['queries']} queries, round {row['round']}"
                reached = ", ".join(f"{shots} shots {mean:.1%}" for shots, mean in means.items()) + f", closed {closed:.1%}"
                print(f"{what}, {row['vlm_calls']} calls: {reached} ({one['seconds']:.0f} s)", flush=True)
            if arguments.out is not None:
                record()  # after each: a run that is stopped leaves what it has


if __name__ == "__main__":
    main()
