"""How large a demo is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from leverplus.dataset import invented_words as data

Size = Literal["quick", "standard", "full"]


@dataclass(frozen=True)
class Cut:
    """Data and work of one size. `items`: which named size of invented-words is generated.

    Pointers scored stay below 8,000, generation and evaluation together; items embedded at most 1,500.
    """

    dataset: str
    items: data.Size
    train_queries: int
    generate: dict[str, Any]
    val_queries: int
    evaluate_shots: tuple[int, ...]
    train: dict[str, Any]


# A training query's own answer says which demonstrations can tell it: nearly all such candidates do, one random pointer in six.
_BY_ANSWER = {"num_beams": 0, "num_samples_per_temp": 0, "num_random": 0, "num_retrieval": 0, "zero_shot": False}
_TRAIN = {
    "rce_epochs": 15,
    "rce_lr": 1e-3,
    "rce_use_raw_reward": True,
    "temperature_start": 0.2,
    "temperature_end": 0.2,
    "hidden_dim": 128,
    "keep_epoch": "loss",
}

CUTS: dict[Size, Cut] = {
    "quick": Cut(
        dataset="invented-words-quick",
        items="quick",
        train_queries=200,
        generate={**_BY_ANSWER, "num_answer": 3, "shots": [1, 2]},
        val_queries=40,
        evaluate_shots=(0, 1, 2),
        train=_TRAIN,
    ),
    "standard": Cut(
        dataset="invented-words-demo",
        items="demo",
        train_queries=1000,
        generate={**_BY_ANSWER, "num_answer": 3, "shots": [1, 2]},
        val_queries=220,
        evaluate_shots=(0, 1, 2),
        train=_TRAIN,
    ),
    "full": Cut(
        dataset="invented-words-demo",
        items="demo",
        train_queries=500,
        generate={**_BY_ANSWER, "num_answer": 2, "shots": [1, 2, 3, 4]},
        val_queries=140,
        evaluate_shots=(0, 1, 2, 3, 4),
        train=_TRAIN,
    ),
}


@dataclass(frozen=True)
class DemoConfig:
    """`data` is a folder of the demo's own; `seed`: of the dataset, where the folder holds none yet.

    `keep`: leave the services running at the end, until the demo is stopped.
    """

    data: Path
    vlm: Path
    size: Size = "standard"
    seed: int = 0
    keep: bool = False
    redis_url: str | None = None
    threads: int = 1

    @property
    def cut(self) -> Cut:
        return CUTS[self.size]

    @property
    def results(self) -> Path:
        """Table, pictures and curl lines of the last run."""
        return self.data / "results"
