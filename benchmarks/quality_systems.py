"""The systems of benchmarks/quality.py: a config, and where the candidates that it is trained on come from; and its tables."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from provenance import ROOT

DEFAULT: dict[str, Any] = {"shots": [1, 2]}
"""What `leverplus rl generate` proposes without being told, of one and two shots, by a selector that is not trained."""

FIRST: dict[str, Any] = {
    "shots": [1, 2], "num_beams": 2, "num_samples_per_temp": 1, "temps": [1.0], "num_random": 1, "num_retrieval": 1,
}  # fmt: skip
"""A third of that, for systems that look again."""

AGAIN: dict[str, Any] = {
    "shots": [1, 2], "num_beams": 1, "num_samples_per_temp": 4, "temps": [1.0, 2.0], "num_random": 0, "num_retrieval": 0,
    "zero_shot": False,
}  # fmt: skip
"""What a trained selector proposes: mostly draws, half of them bold."""

REFERENCE_TRAINING: dict[str, Any] = {"rce_epochs": 10, "rce_lr": 1e-3}
"""Of the baselines: more than the reference's 5 epochs at 1e-4, which hardly move a selector (docs/log.md)."""

OURS: dict[str, Any] = tomllib.loads((ROOT / "configs" / "answers-then-rce.toml").read_text())

ARCHITECTURE = ("num_layers", "query_mlp", "state_update", "dropout")


@dataclass(frozen=True)
class System:
    """`first`: what is proposed by an untrained selector; `rounds`: what the selector trained so far proposes next."""

    config: Mapping[str, Any]
    first: Mapping[str, Any] = field(default_factory=lambda: DEFAULT)
    rounds: tuple[Mapping[str, Any], ...] = ()
    phase: str | None = None
    """Whose checkpoint is judged; None: the one that the run recommends."""
    judged_at: tuple[int, ...] = (1, 2)
    """Shots. Beyond two the VLM itself is asked, and the dataset's images are needed."""
    info_score: bool = False
    """Whether candidates get one, asked of the VLM itself."""


BASELINES: dict[str, System] = {
    "v0, RCE": System({**REFERENCE_TRAINING, "architecture": "autoregressive"}),
    "v1, RCE": System({**REFERENCE_TRAINING, "num_layers": 0}),
    "v2, best beam": System({"supervised_epochs": 10, "supervised_lr": 1e-3, "rce_epochs": 0}),
    "v3, RCE z-scored": System(REFERENCE_TRAINING),
    "v3, RCE raw": System({**REFERENCE_TRAINING, "rce_use_raw_reward": True}),
    "v3, GRPO as the reference": System({**REFERENCE_TRAINING, "grpo_epochs": 5, "grpo_form": "reference"}, phase="grpo"),
}
OURS_ALL: dict[str, System] = {
    "v5, answers, RCE": System(OURS, FIRST, (AGAIN,), phase="rce"),
    "v5, answers, RCE, safe GRPO": System({**OURS, "grpo_epochs": 3}, FIRST, (AGAIN,), phase="grpo"),
    "v5, answers alone": System({**OURS, "rce_epochs": 0}, FIRST),
    "v5, RCE": System({**OURS, "answer_epochs": 0}, FIRST, (AGAIN,), phase="rce"),
}

QUERIES = 4_000

Row = tuple[str, System, int, int | None]
"""Name, system, train queries, and how many of the candidates proposed in a round a query keeps, None for all."""


def reward_grid() -> list[Row]:
    """configs/reward-grid.toml and correctness or accuracy alone, on two selectors that see nothing but rewards.

    "separated" is left out: its rewards are those of hard_plus_soft_v2. hybrid has a table of its own.
    """
    axes = tomllib.loads((ROOT / "configs" / "reward-grid.toml").read_text())["axes"]
    cells = [
        (mode, tuple(weights))
        for mode in axes["reward.mode"]
        if mode not in ("separated", "hybrid")
        for weights in axes["reward.hard_weight,reward.soft_weight"]
    ]
    rows: list[Row] = []
    for base, system in (("v5", OURS_ALL["v5, RCE"]), ("v3", BASELINES["v3, RCE z-scored"])):
        for mode, (hard, soft) in [*cells, ("hard_only", (1.0, 1.0)), ("soft_only", (1.0, 1.0))]:
            for raw in axes["rce_use_raw_reward"]:
                reward = {"mode": mode, "hard_weight": hard, "soft_weight": soft}
                config = {**system.config, "reward": reward, "rce_use_raw_reward": raw}
                weighed = "" if mode in ("hard_only", "soft_only") else f" {hard:g}:{soft:g}"
                name = f"{base}, {mode}{weighed}, {'raw' if raw else 'z-scored'}"
                rows.append((name, replace(system, config=config), 2_000, None))
    return rows


def info_scores() -> list[Row]:
    """What is right, what makes the query's own answer likelier, and both."""
    rewards: dict[str, dict[str, Any]] = {
        "correctness and accuracy": {"mode": "hard_plus_soft"},
        "correctness": {"mode": "hard_only"},
        "InfoScore": {"mode": "hybrid", "alpha": 1.0},
        "hybrid": {"mode": "hybrid", "alpha": 0.5},
    }
    rows: list[Row] = []
    for base, system in (("v5", OURS_ALL["v5, RCE"]), ("v3", BASELINES["v3, RCE z-scored"])):
        for name, reward in rewards.items():
            for raw in (False, True):
                config = {**system.config, "reward": reward, "rce_use_raw_reward": raw}
                made = replace(system, config=config, info_score=reward["mode"] == "hybrid")
                rows.append((f"{base}, {name}, {'raw' if raw else 'z-scored'}", made, 1_000, None))
    return rows


def shots_trained_on() -> list[Row]:
    """Two shots alone, one and two, one to four: the same proposals for each number of shots."""
    rows: list[Row] = []
    for base in ("v5, RCE", "v5, answers, RCE"):
        for name, shots in (("2 shots alone", [2]), ("1 and 2 shots", [1, 2]), ("1 to 4 shots", [1, 2, 3, 4])):
            system = OURS_ALL[base]
            first, rounds = {**system.first, "shots": shots}, tuple({**one, "shots": shots} for one in system.rounds)
            rows.append((f"{base}, {name}", replace(system, first=first, rounds=rounds, judged_at=(1, 2, 3, 4)), 500, None))
    return rows


WIDE_FIRST: dict[str, Any] = {**FIRST, "num_beams": 4, "num_samples_per_temp": 2, "num_random": 3, "num_retrieval": 3}
WIDE_AGAIN: dict[str, Any] = {**AGAIN, "num_samples_per_temp": 7}
"""Enough to choose 16 from in each round."""


def data_curves() -> list[Row]:
    """Half of the candidates in each of two rounds."""
    rce, answers = (replace(OURS_ALL[name], first=WIDE_FIRST, rounds=(WIDE_AGAIN,)) for name in ("v5, RCE", "v5, answers, RCE"))
    rows: list[Row] = [
        ("v5, RCE", rce, queries, candidates // 2) for queries in (250, 500, 1000, 2000, 4000) for candidates in (4, 8, 16, 32)
    ]
    rows += [("v5, answers, RCE", answers, queries, each // 2) for queries in (250, 1000, 4000) for each in (8, 32)]
    return rows


def online_rounds() -> list[Row]:
    """Six rounds of what the selector trained so far proposes, trained on all that was scored."""
    return [(name, replace(OURS_ALL[name], rounds=(AGAIN,) * 6), 1_000, None) for name in ("v5, RCE", "v5, answers, RCE")]


def grpo_after_rce() -> list[Row]:
    """Three epochs of GRPO's safe form from RCE's best, and RCE's best itself, on the reward that none beats."""
    rows: list[Row] = []
    for base, system in (("v5", OURS_ALL["v5, RCE"]), ("v3", BASELINES["v3, RCE z-scored"])):
        config = {**system.config, "grpo_epochs": 3}
        rows += [(f"{base}, {phase}", replace(system, config=config, phase=phase), 2_000, None) for phase in ("rce", "grpo")]
    return rows


def one_file() -> list[Row]:
    """One training on one file, as a user's first is: what generation proposes by default, and no second round."""
    ours = OURS_ALL["v5, RCE"].config
    systems = {
        "no config": System({}),
        "v3, RCE": BASELINES["v3, RCE z-scored"],
        "v5 by the recipe of v3, RCE": System({**REFERENCE_TRAINING, **{name: OURS[name] for name in ARCHITECTURE}}),
        "v5, RCE": System(ours),
        "v5, RCE, flat groups kept": System({**ours, "drop_flat_groups": False}),
        "v5, answers, RCE: answers": System(OURS, phase="answers"),
        "v5, answers, RCE: rce": System(OURS, phase="rce"),
        "v5, answers, RCE: recommended": System(OURS),
    }
    return [(name, system, queries, None) for queries in (1_000, QUERIES) for name, system in systems.items()]


TABLES: dict[str, list[Row]] = {
    "main": [(name, system, QUERIES, None) for name, system in {**OURS_ALL, **BASELINES}.items()],
    "rewards": reward_grid(),
    "info": info_scores(),
    "shots": shots_trained_on(),
    "data": data_curves(),
    "rounds": online_rounds(),
    "grpo": grpo_after_rce(),
    "one-file": one_file(),
}
