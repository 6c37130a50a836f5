"""What the configs of a training run reach on the demo's data, and which of their checkpoints the runs recommend.

    leverplus import demo --data DATA        (or make demo, whose folder is .leverplus/demo)
    python benchmarks/demo_configs.py --data DATA --seeds 3

Copies dataset, embeddings and RL data of DATA, starts the services on them on free ports, trains every config under every seed
over HTTP, and has one evaluation judge all their checkpoints on the same val queries at two shots. Intervals are over images and
training seeds.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from provenance import RESULTS, ROOT, commit, machine

from leverplus.client import TrainerClient
from leverplus.data_root import DataRoot
from leverplus.demo.config import CUTS
from leverplus.evaluation import summarise
from leverplus.evaluation.comparison import Cell
from leverplus.files import write_json
from leverplus.launcher import Ports, Stack, StackConfig
from pointer_trainer.per_query import PerQuery, read_per_query

CUT = CUTS["standard"]
SHOTS = 2
LIMIT_S = 1800.0
KEPT = ("checkpoint_id", "checkpoints", "recommendation")


def config_file(name: str, **changed: Any) -> dict[str, Any]:
    return {**tomllib.loads((ROOT / "configs" / name).read_text()), **changed}


CONFIGS: dict[str, dict[str, Any]] = {
    "no config": {},
    "v3, RCE": {"rce_epochs": 10, "rce_lr": 1e-3},
    "v3, RCE, the demo's": CUT.train,
    "v5, RCE": config_file("answers-then-rce.toml", answer_epochs=0),
    "v5, RCE, flat groups kept": config_file("answers-then-rce.toml", answer_epochs=0, drop_flat_groups=False),
    "v5, answers": config_file("answers.toml"),
    "v5, answers, RCE": config_file("answers-then-rce.toml"),
}
"""By name: what `POST /train` is given beside a seed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / ".leverplus" / "demo", help="a folder with the demo's data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--queries", type=int, default=CUT.val_queries, help="of val")
    parser.add_argument("--out", type=Path, default=RESULTS / "demo_configs.json")
    arguments = parser.parse_args()
    at_start = machine()
    with tempfile.TemporaryDirectory(prefix="leverplus-demo-configs-") as folder:
        root = DataRoot(Path(folder))
        for part in (f"datasets/{CUT.dataset}", f"embeddings/{CUT.dataset}", "rl-data"):
            shutil.copytree(arguments.data / part, root.path / part)
        stack_config = StackConfig(data=root.path, vlm=ROOT / "assets" / "in-context-vlm", ports=Ports.free())
        with Stack.start(stack_config) as stack, TrainerClient(stack.trainer_url) as trainer:
            found = measured(trainer, root, arguments.seeds, arguments.queries)
    told = {"command": shlex.join(["python", *sys.argv]), "commit": commit(), "machine": at_start}
    write_json(arguments.out, {**told, "configs": CONFIGS, **found})


def measured(trainer: TrainerClient, root: DataRoot, seeds: int, queries: int) -> dict[str, Any]:
    rl_data = sorted(path.stem for path in (root.path / "rl-data").glob("[!.]*.ndjson"))
    runs: list[dict[str, Any]] = []
    for name, config in CONFIGS.items():
        for seed in range(seeds):
            began = time.perf_counter()
            result = trainer.wait(trainer.train(rl_data, {**config, "seed": seed}), limit_s=LIMIT_S)
            run = {"config": name, "seed": seed, "seconds": round(time.perf_counter() - began, 1)}
            run |= {"epoch": result["metrics"]["epoch"], **{key: result[key] for key in KEPT}}
            runs.append(run)
            print(f"{name}, seed {seed}: {result['recommendation']['phase']}, {result['recommendation']['reason']}", flush=True)
    request = {
        "dataset": CUT.dataset, "split": "val", "queries": queries, "shots": [SHOTS],
        "checkpoints": [checkpoint for run in runs for checkpoint in run["checkpoints"].values()],
    }  # fmt: skip
    evaluated = trainer.wait(trainer.evaluate(request), limit_s=LIMIT_S)
    rows = read_per_query(Path(evaluated["run_folder"]), evaluated["per_query_sha256"])
    return {"rl_data": rl_data, "split": "val", "shots": SHOTS, **compared(runs, rows), "runs": runs}


def compared(runs: list[dict[str, Any]], rows: PerQuery) -> dict[str, Any]:
    """Accuracies of every system, and the paired differences between all of them."""
    cells: dict[Cell, Any] = {(name, SHOTS): values[SHOTS] for name, values in rows.baselines.items() if SHOTS in values}
    seeded: dict[str, list[Any]] = {}
    for run in runs:
        phases: Mapping[str, str] = run["checkpoints"]
        for phase, checkpoint in phases.items():
            # Where a run has several phases, each is a system, and what it recommends another.
            name = run["config"] if len(phases) == 1 else f"{run['config']}: {phase}"
            seeded.setdefault(name, []).append(rows.checkpoints[checkpoint][SHOTS])
        if len(phases) > 1:
            seeded.setdefault(f"{run['config']}: recommended", []).append(rows.checkpoints[run["checkpoint_id"]][SHOTS])
    cells |= {(name, SHOTS): np.stack(values) for name, values in seeded.items()}
    names = ["similar-joint", *seeded]
    evaluation = summarise(cells, rows.image_ids, baselines=names, seeded=seeded, learned=seeded)
    for row in evaluation.rows:
        interval = "" if row.low is None or row.high is None else f" [{row.low:.1%}, {row.high:.1%}]"
        print(f"{row.system}: {row.mean:.1%}{interval}", flush=True)
    by_seed = {name: [round(float(values.mean()), 4) for values in of_seeds] for name, of_seeds in seeded.items()}
    return {"queries": len(rows.query_ids), **asdict(evaluation), "by_seed": by_seed}


if __name__ == "__main__":
    main()
