"""The systems of benchmarks/quality.py: a config, and where the candidates that it is trained on come from; and its tables."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class System:
    """`first`: what is proposed by an untrained selector; `rounds`: what the selector trained so far proposes next."""

    config: Mapping[str, Any]
    first: Mapping[str, Any] = field(default_factory=lambda: DEFAULT)
    rounds: tuple[Mapping[str, Any], ...] = ()
    phase: str | None = None
    """Whose checkpoint is judged; None: the one that the run recommends."""


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

TABLES: dict[str, list[tuple[str, System, int, int | None]]] = {
    "main": [(name, system, QUERIES, None) for name, system in {**OURS_ALL, **BASELINES}.items()],
}
"""Name, system, train queries, and how many of the proposed candidates a query keeps, None for all."""
