"""What each objective reaches on invented-words, exactly: trained on rewards of assets/reward-table, judged on its val split.

    leverplus import invented-words --data DATA && leverplus embed invented-words --data DATA
    python benchmarks/objectives_table.py --data DATA

Training data are all 64 one-shot rewards of the first train queries. Judged by the accuracy of the greedy pointer and, for one
shot, by the expected accuracy of the policy; both exact, since the table holds every pointer.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import ROOT, commit, machine
from reward_world import Material, open_material, training

from leverplus.files import write_json
from leverplus.fingerprint import Fingerprint
from leverplus.ids import ItemId
from leverplus.rl_data import Candidate, QueryRecord, RlData
from leverplus.selector import selector_from_checkpoint

GRPO: dict[str, Any] = {"grpo_epochs": 3}
VARIANTS: dict[str, dict[str, Any]] = {
    "rce": {},
    "rce, flat groups dropped": {"drop_flat_groups": True},
    "rce, weighted by best over mean": {"group_weight": "best_over_mean"},
    "expected reward": {"objective": "expected_reward", "kl_beta": 0.0},
    "expected reward, KL 0.1": {"objective": "expected_reward"},
    "rce, then safe GRPO": GRPO,
    "rce, then safe GRPO at 1e-4": {**GRPO, "grpo_lr": 1e-4},
    "rce, then safe GRPO at 1e-4, leave one out": {**GRPO, "grpo_lr": 1e-4, "grpo_advantage": "leave_one_out"},
    "rce, then safe GRPO at 1e-3, all weights": {**GRPO, "grpo_lr": 1e-3, "grpo_trainable": "all"},
    "rce, then GRPO as the reference": {**GRPO, "grpo_form": "reference"},
}


def one_shot_data(material: Material, queries: int) -> RlData:
    """All 64 one-shot rewards of the first train queries."""
    table, pools = material.tables["train"], material.pools
    rewards = table.of_length(1)
    records: list[QueryRecord] = []
    for row, query_id in enumerate(table.query_ids[:queries].tolist()):
        pool = tuple(ItemId(int(item)) for item in pools.pool(ItemId(query_id)))
        candidates = tuple(
            Candidate((item,), None, vqa_correct=int(reward > 0), vqa_acc_score=float(reward), vqa_eval_mode="file")
            for item, reward in zip(pool, rewards[row], strict=True)
        )
        records.append(QueryRecord(ItemId(query_id), {}, pool, candidates))
    return RlData({}, Fingerprint(dataset=material.dataset.fingerprint(), pool=pools.fingerprint()), records)


def judge(checkpoint: Path, material: Material) -> dict[str, float]:
    """On val."""
    table, pools, embeddings = material.tables["val"], material.pools, material.embeddings
    model = selector_from_checkpoint(checkpoint)
    queries = [ItemId(int(one)) for one in table.query_ids]
    query = torch.from_numpy(embeddings.query[queries])
    candidates = torch.from_numpy(embeddings.candidate[np.stack([pools.pool(one) for one in queries])])
    with torch.no_grad():
        probabilities = torch.softmax(model(query, candidates, shots=1)[:, 0], -1).numpy()
    found = {
        f"greedy_{shots}": float(table.chosen(model.select(query, candidates, shots).positions.numpy()).mean())
        for shots in (1, 2)
    }
    return {**found, "expected_1": float(table.expected(probabilities, 1).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / ".leverplus", help="data root that holds dataset and embeddings")
    parser.add_argument("--queries", type=int, default=1000, help="train queries; 80 % are trained on")
    parser.add_argument("--epochs", type=int, default=8, help="of the first phase, at 1e-3")
    parser.add_argument("--hidden-dim", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="variants whose names contain one of these")
    parser.add_argument("--out", type=Path, help="JSON file")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    material = open_material(arguments.data)
    data = one_shot_data(material, arguments.queries)
    rows: list[dict[str, Any]] = []
    for name, settings in VARIANTS.items():
        if arguments.only and not any(part in name for part in arguments.only):
            continue
        for seed in range(arguments.seeds):
            own = {
                "rce_lr": 1e-3,
                "rce_epochs": arguments.epochs,
                "hidden_dim": arguments.hidden_dim,
                "seed": seed,
                "device": "cpu",
            }
            began = time.perf_counter()
            with training({**own, **settings}, [data], material) as (folder, result):
                seconds = time.perf_counter() - began
                for phase, checkpoint_id in result.checkpoints.items():
                    of_phase = [row for row in result.epochs if row["phase"] == phase]
                    row = {
                        "variant": name,
                        "seed": seed,
                        "phase": phase,
                        "recommended": checkpoint_id == result.checkpoint_id,
                        "epochs": of_phase[-1]["epoch"],
                        "held_out_expected_reward": [round(one["held_out_expected_reward"], 4) for one in of_phase],
                        "kl": of_phase[-1]["kl"],
                        **judge(folder / checkpoint_id, material),
                        "seconds": round(seconds, 1),
                    }
                    rows.append(row)
                    print(row, flush=True)
    if arguments.out is not None:
        report = {"command": shlex.join(["python", *sys.argv]), "commit": commit(), "machine": machine(), "rows": rows}
        write_json(arguments.out, report)


if __name__ == "__main__":
    main()
