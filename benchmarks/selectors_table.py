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
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from objectives_table import judge
from provenance import ROOT, commit, machine

from leverplus.checkpoints import load_checkpoint
from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset
from leverplus.embeddings import Embeddings
from leverplus.files import write_json
from leverplus.fingerprint import Fingerprint
from leverplus.ids import ItemId
from leverplus.pools import PoolPolicy, Pools
from leverplus.reward_table import RewardTable
from leverplus.rl_data import Candidate, QueryRecord, RlData
from pointer_trainer.proposals import Proposal, initialised_selector, propose
from pointer_trainer.requests import GenerateRequest
from pointer_trainer.train_config import TrainConfig
from pointer_trainer.training import train

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


def scored(proposals: list[Proposal], table: RewardTable, pools: Pools, dataset: Dataset) -> RlData:
    """The proposals with the table's rewards."""
    records: list[QueryRecord] = []
    for proposal in proposals:
        place = {item_id: position for position, item_id in enumerate(proposal.pool)}
        candidates: list[Candidate] = []
        for one in proposal.candidates:
            reward = table.reward(proposal.query_id, [place[item_id] for item_id in one.pointer])
            found = {"gen_method": one.gen_method, "beam_rank": one.beam_rank, "vqa_eval_mode": "file"}
            candidates.append(Candidate(one.pointer, vqa_correct=int(reward > 0), vqa_acc_score=reward, **found))
        records.append(QueryRecord(proposal.query_id, {}, proposal.pool, tuple(candidates)))
    return RlData({}, Fingerprint(dataset=dataset.fingerprint(), pool=pools.fingerprint()), records)


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
    root = DataRoot(arguments.data)
    dataset = Dataset.open(root.dataset("invented-words"))
    embeddings = Embeddings.open(root.embeddings("invented-words"), dataset)
    tables = {split: RewardTable.open(ROOT / "assets" / "reward-table", split) for split in ("train", "val")}
    policy = PoolPolicy.from_json(tables["val"].header["pool"]["policy"])
    pools = Pools(dataset, embeddings, policy)
    request = GenerateRequest(dataset=dataset.name, shots=[1, 2], **CANDIDATES[arguments.candidates])
    query_ids = [ItemId(int(one)) for one in tables["train"].query_ids[: arguments.queries]]
    initial, _ = initialised_selector(embeddings.manifest.d_model, request.seed)
    data = scored(list(propose(initial, embeddings, pools, query_ids, request)), tables["train"], pools, dataset)
    rows: list[dict[str, Any]] = []
    for name, settings in SELECTORS.items():
        for seed in range(arguments.seeds):
            epochs = {"rce_epochs": arguments.epochs} | (
                {"supervised_epochs": arguments.epochs} if "supervised_lr" in settings else {}
            )
            config = TrainConfig(
                **{**epochs, "rce_lr": 1e-3, "hidden_dim": arguments.hidden_dim, "seed": seed, "device": "cpu", **settings}
            )
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                result = train(
                    config,
                    [data],
                    embeddings,
                    dataset=dataset,
                    pool_policy=policy,
                    rl_data_refs=[{"id": "reward-table", "sha256": ""}],
                    checkpoint_folder=Path(folder) / "ckpt",
                    run_folder=Path(folder) / "run",
                    progress=lambda phase, step, total, extra: None,
                    should_stop=lambda: False,
                )
                seconds = time.perf_counter() - began
                tensors, info = load_checkpoint(Path(folder) / "ckpt")
                judged = judge(Path(folder) / "ckpt", tables["val"], pools, embeddings)
            before = result.epochs[0]
            row = {
                "selector": name,
                "seed": seed,
                "parameters": sum(tensor.size for tensor in tensors.values()),
                "epoch": info.metrics["epoch"],
                "held_out_expected_reward": [round(row["held_out_expected_reward"], 4) for row in (before, info.metrics)],
                "greedy_1": judged["greedy_1"],
                "greedy_2": judged["greedy_2"],
                "seconds": round(seconds, 1),
            }
            rows.append(row)
            print(row, flush=True)
    if arguments.out is not None:
        candidates = sum(len(record.candidates) for record in data.records)
        report = {
            "command": shlex.join(["python", *sys.argv]),
            "commit": commit(),
            "machine": machine(),
            "val_queries": len(tables["val"].query_ids),
            "candidates": candidates,
            "rows": rows,
        }
        write_json(arguments.out, report)


if __name__ == "__main__":
    main()
