"""How large a demo is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Size = Literal["quick", "standard", "full"]


@dataclass(frozen=True)
class Cut:
    """Data and work of one size. Pointers scored stay below 8,000: generation and evaluation together."""

    dataset: str
    train_images: int
    test_images: int
    train_queries: int
    generate: dict[str, Any]
    test_queries: int
    evaluate_shots: tuple[int, ...]
    train: dict[str, Any]
    questions_per_image: int = 3


_EACH = {"num_beams": 5, "temps": [1.0, 1.3], "num_samples_per_temp": 2, "num_random": 1, "num_retrieval": 5}

CUTS: dict[Size, Cut] = {
    "quick": Cut(
        dataset="easy-vqa-quick",
        train_images=50,
        test_images=20,
        train_queries=30,
        generate={**_EACH, "num_beams": 3, "temps": [1.0], "num_retrieval": 3, "shots": [1, 2]},
        test_queries=40,
        evaluate_shots=(0, 1, 2),
        train={"rce_epochs": 5},
    ),
    "standard": Cut(
        dataset="easy-vqa-demo",
        train_images=330,
        test_images=100,
        train_queries=200,
        generate={**_EACH, "shots": [1, 2]},
        test_queries=150,
        evaluate_shots=(0, 1, 2),
        train={"rce_epochs": 20},
    ),
    "full": Cut(
        dataset="easy-vqa-demo",
        train_images=330,
        test_images=100,
        train_queries=100,
        generate={**_EACH, "shots": [1, 2, 3, 4]},
        test_queries=90,
        evaluate_shots=(0, 1, 2, 3, 4),
        train={"rce_epochs": 20},
    ),
}


@dataclass(frozen=True)
class DemoConfig:
    """`data` is a folder of the demo's own. `keep`: leave the services running at the end, until the demo is stopped."""

    data: Path
    vlm: Path
    size: Size = "standard"
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
