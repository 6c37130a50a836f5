"""What the four selectors reach on invented-words, exactly: trained on rewards of assets/reward-table, judged on its val split.

    leverplus import invented-words --data DATA && leverplus embed invented-words --data DATA
    python benchmarks/selectors_table.py --data DATA

Training data are what `leverplus rl generate` proposes for the first train queries, of one and two shots, by beams, samples,
retrieval and at random, with the table's rewards; `--candidates answer` takes those that the queries' own answers suggest beside
the beams. Judged by the accuracy of the greedy pointer; exact, since the table holds every pointer.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from objectives_table import judge
from provenance import ROOT, commit, machine
from reward_world import Material, open_material, scored, training

from leverplus.checkpoints import load_checkpoint
from leverplus.files import write_json
from leverplus.ids import ItemId
from leverplus.rl_data import RlData
from pointer_trainer.proposals import initialised_selector, propose
from pointer_trainer.requests import GenerateRequest

SUPERVISED = {"rce_epochs": 0, "supervised_lr": 1e-3}
SELECTORS: dict[str, dict[str, Any]] = {
    "v0": {"architecture": "autoregressive"},
    "v1": {"num_layers": 0},
    "v2": SUPERVISED,
    "v3": {},
    "v3 from v2": {"supervised_lr": 1e-3},
}
CANDIDATES: dict[str, dict[str, Any]] = {
    "reference": {},
    "answer": {"num_samples_per_temp": 0, "num_random": 0, "num_retrieval": 0, "num_answer": 3},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / ".leverplus", help="data root that holds dataset and embeddings")
    parser.add_argument("--queries", type=int, default=1000, help="train queries; 80 % are trained on")
    parser.add_argument("--candidates", choices=CANDIDATES, default="reference")
    parser.add_argument("--epochs", type=int, default=10, help="of each phase, at 1e-3")
    parser.add_argument("--hidden-dim", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    material = open_material(arguments.data)
    pools, embeddings, tables = material.pools, material.embeddings, material.tables
    request = GenerateRequest(dataset=material.dataset.name, shots=[1, 2], **CANDIDATES[arguments.candidates])
    query_ids = [ItemId(int(one)) for one in tables["train"].query_ids[: arguments.queries]]
    initial, _ = initialised_selector(embeddings.manifest.d_model, request.seed)
    data = scored(propose(initial, embeddings, pools, query_ids, request), tables["train"], material)
    rows: list[dict[str, Any]] = []
    for name, settings in SELECTORS.items():
        values: dict[str, Any] = {"rce_epochs": arguments.epochs, "rce_lr": 1e-3, "hidden_dim": arguments.hidden_dim}
        if "supervised_lr" in settings:
            values["supervised_epochs"] = arguments.epochs
        for seed in range(arguments.seeds):
            config = {**values, **settings, "seed": seed, "device": "cpu"}
            rows.append({"selector": name, "seed": seed, **trained(config, data, material)})
            print(rows[-1], flush=True)
    if arguments.out is not None:
        methods = Counter(candidate.gen_method for record in data.records for candidate in record.candidates)
        report = {
            "command": shlex.join(["python", *sys.argv]),
            "commit": commit(),
            "machine": machine(),
            "candidates": dict(sorted(methods.items())),
            "val_queries": len(tables["val"].query_ids),
            "rows": rows,
        }
        write_json(arguments.out, report)


def trained(config: Mapping[str, Any], data: RlData, material: Material) -> dict[str, Any]:
    """What the run's own checkpoint reaches on val; held-out expected reward before training and of the epoch kept."""
    began = time.perf_counter()
    with training(config, [data], material) as (folder, result):
        seconds = time.perf_counter() - began
        tensors, info = load_checkpoint(folder / "ckpt")
        judged = judge(folder / "ckpt", material)
    return {
        "parameters": sum(tensor.size for tensor in tensors.values()),
        "epoch": info.metrics["epoch"],
        "held_out_expected_reward": [round(row["held_out_expected_reward"], 4) for row in (result.epochs[0], info.metrics)],
        "greedy_1": round(judged["greedy_1"], 4),
        "greedy_2": round(judged["greedy_2"], 4),
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
