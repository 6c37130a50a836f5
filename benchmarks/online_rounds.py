"""Rounds with the live scorer: what each adds per 1,000 VLM calls.

    leverplus import invented-words --data DATA && leverplus embed invented-words --data DATA
    python benchmarks/online_rounds.py --data DATA --seeds 0 1 2

From the repository's root. For each seed the services start on free ports in a folder of their own, with the small VLM and a copy
of DATA's dataset and embeddings. Then the two commands of docs/rl-data.md, round after round: `leverplus rl generate`, by the
selector trained so far, and `leverplus train` on the files of all rounds. A call is a pointer that the scorer's VLM answered, by
the scorer's own count. Each checkpoint is judged as benchmarks/quality.py does, by assets/reward-table's val queries, and each
reward is compared with the table's where it holds the pointer. Results are written after every round; runs of other systems,
seeds or numbers of queries that the file holds stay.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from no_headroom import Commands
from provenance import RESULTS, ROOT, commit, machine
from quality import Floats, chosen, packed, references
from quality_systems import AGAIN, FIRST
from reward_world import Material, open_material

from leverplus import rl_data
from leverplus.client import ScorerClient
from leverplus.data_root import DataRoot
from leverplus.files import write_json
from leverplus.fingerprint import Fingerprint
from leverplus.launcher import Ports, Stack, StackConfig
from leverplus.rl_data import RlData
from leverplus.selector import selector_from_checkpoint

DATASET = "invented-words"
CONFIG = "configs/answers-then-rce.toml"
JUDGED_AT = (1, 2)


@dataclass(frozen=True)
class Plan:
    """`queries`: of each round, the same ones in all, or drawn anew for each with `new_queries`."""

    queries: int
    rounds: int
    seed: int
    with_answers: bool
    new_queries: bool

    @property
    def system(self) -> str:
        return ("v5, answers, RCE" if self.with_answers else "v5, RCE") + (", new queries" if self.new_queries else "")

    def generate(self, number: int, checkpoint: str | None) -> list[str]:
        """Arguments of `leverplus`."""
        drawn_with = self.seed + 1_000 * number if self.new_queries else self.seed
        by = ["--checkpoint", checkpoint] if checkpoint else []
        shared = ["--queries", str(self.queries), "--seed", str(drawn_with)]
        return ["rl", "generate", DATASET, *shared, *options(AGAIN if number else FIRST), *by]

    def train(self, rl_data_ids: Sequence[str]) -> list[str]:
        """Arguments of `leverplus`."""
        without = [] if self.with_answers else ["--set", "answer_epochs=0"]
        return ["train", *rl_data_ids, "--config", CONFIG, "--set", f"seed={self.seed}", *without]

    @property
    def command(self) -> str:
        """That makes this run, without the folders of one machine."""
        parts = ["python", "benchmarks/online_rounds.py", "--queries", str(self.queries), "--rounds", str(self.rounds)]
        parts += ["--seeds", str(self.seed), *(["--answers"] if self.with_answers else [])]
        return shlex.join([*parts, *(["--new-queries"] if self.new_queries else [])])


def options(proposed: Mapping[str, Any]) -> list[str]:
    """What a body of POST /rl-data/generate is on the command line."""
    found: list[str] = []
    for name, value in proposed.items():
        option = "--temp" if name == "temps" else f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            found.append(option if value else option.replace("--", "--no-", 1))
        else:
            values: list[Any] = value if isinstance(value, list) else [value]
            found += [part for one in values for part in (option, str(one))]
    return found


def compared(data: RlData, material: Material) -> dict[str, int]:
    """Pointers that the reward table holds too, those of other rewards among them, and scores that are not the metric's own."""
    table = material.tables["train"]
    held = {int(query_id) for query_id in table.query_ids}
    counts = {"in_table": 0, "differing": 0, "not_by_file": 0}
    for record in data.records:
        place = {item_id: position for position, item_id in enumerate(record.candidate_pool_ids)}
        for one in record.candidates:
            counts["not_by_file"] += one.vqa_eval_mode != "file"
            if record.query_id in held:
                counts["in_table"] += 1
                reward = table.reward(record.query_id, [place[item_id] for item_id in one.pointer])
                counts["differing"] += one.vqa_acc_score is None or abs(one.vqa_acc_score - reward) > 1e-6
    return counts


class Judge:
    """Share of the headroom that a checkpoint closes at two shots on the reward table's val queries."""

    def __init__(self, material: Material) -> None:
        self._material = material
        self.references = references(material, "val")
        self._low, self._high = (float(self.references[name].mean()) for name in ("random", "oracle"))

    def accuracies(self, checkpoint: Path) -> dict[str, str]:
        """Number of shots -> a digit a query."""
        found = chosen(selector_from_checkpoint(checkpoint), "val", self._material, JUDGED_AT)
        return {str(shots): packed(values) for shots, values in found.items()}

    def closed(self, accuracies: Mapping[str, str]) -> float:
        tenths = [10 if digit == "X" else int(digit) for digit in accuracies["2"]]
        return (float(np.mean(tenths)) / 10 - self._low) / (self._high - self._low)


def run(
    plan: Plan,
    at: str | None,
    commands: Commands,
    stack: Stack,
    material: Material,
    judge: Judge,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """`at`: the commit. `keep` is given the run as it stands after every round."""
    root = DataRoot(stack.config.data)
    found: dict[str, Any] = {
        "command": plan.command, "commit": at, "machine": machine(), "table": "online", "system": plan.system, "seed": plan.seed,
        "queries": plan.queries, "at_most": None, "fingerprint": None, "closed_before": 0.0, "rows": [],
        "commands": commands.said,
    }  # fmt: skip
    checkpoint: str | None = None
    files: list[str] = []
    calls, known = 0, 0.0
    for number in range(plan.rounds + 1):
        generated = commands.json(*plan.generate(number, checkpoint))
        generate_s = commands.said[-1]["seconds"]
        files.append(generated["rl_data_id"])
        with ScorerClient(stack.scorer_url) as scorer:
            new = int(scorer.stats()["totals"]["generated"]) - calls
        calls += new
        trained = commands.json(*plan.train(files))
        train_s = commands.said[-1]["seconds"]
        data = rl_data.read(root.rl_data(files[-1]), material.dataset)
        Fingerprint(pool=material.pools.fingerprint()).require_same(data.fingerprint, subject="the RL data", parts=("pool",))
        if number == 0:
            found["fingerprint"] = data.fingerprint.to_json()
            if plan.with_answers:
                known = found["closed_before"] = judge.closed(
                    judge.accuracies(root.checkpoint(trained["checkpoints"]["answers"]))
                )
        checkpoint = str(trained["checkpoints"]["rce"])
        accuracies = judge.accuracies(root.checkpoint(checkpoint))
        closed = judge.closed(accuracies)
        row: dict[str, Any] = {
            "round": number, "candidates": generated["scores"]["scored"], "cached": generated["scores"]["cached"],
            "new_calls": new, "vlm_calls": calls, **compared(data, material),
            "generate_s": generate_s, "train_s": train_s, "accuracies": accuracies, "closed": closed,
            "points_per_1000_calls": 1_000 * 100 * (closed - known) / new if new else None,
        }  # fmt: skip
        known = closed
        found["rows"].append(row)
        keep(found)
        print({name: value for name, value in row.items() if name != "accuracies"}, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / ".leverplus", help="data root that holds dataset and embeddings")
    parser.add_argument("--queries", type=int, default=1_000, help="train queries of a round")
    parser.add_argument("--rounds", type=int, default=4, help="after the one whose proposals are an untrained selector's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of queries, proposals and training")
    parser.add_argument("--answers", action="store_true", help="learn from the dataset's own answers before RCE")
    parser.add_argument("--new-queries", action="store_true", help="draw queries anew for every round")
    parser.add_argument("--out", type=Path, default=RESULTS / "online_rounds.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    at = commit()
    material = open_material(arguments.data)
    judge = Judge(material)

    def keep(found: dict[str, Any]) -> None:
        put(arguments.out, found, judge.references)

    for seed in arguments.seeds:
        plan = Plan(arguments.queries, arguments.rounds, seed, arguments.answers, arguments.new_queries)
        with tempfile.TemporaryDirectory(prefix="leverplus-rounds-") as name:
            data = Path(name)
            for kind in ("datasets", "embeddings"):
                shutil.copytree(arguments.data / kind / DATASET, data / kind / DATASET)
            with Stack.start(StackConfig(data=data, vlm=ROOT / "assets" / "in-context-vlm", ports=Ports.free())) as stack:
                run(
                    plan, at, Commands(data, stack), stack, material, judge, lambda one: put(arguments.out, one, judge.references)
                )


def put(path: Path, run: Mapping[str, Any], references: Mapping[str, Floats]) -> None:
    """Writes a run into the file, in the place of the one that it repeats."""
    kept: list[Any] = orjson.loads(path.read_bytes())["runs"] if path.is_file() else []
    runs = {named(one): one for one in (*kept, run)}
    bounds = {name: np.round(references[name], 4).tolist() for name in ("random", "oracle")}
    write_json(path, {"split": "val", "references": bounds, "runs": [runs[name] for name in sorted(runs)]})


def named(run: Mapping[str, Any]) -> tuple[str, int, int]:
    return run["system"], run["queries"], run["seed"]


if __name__ == "__main__":
    main()
