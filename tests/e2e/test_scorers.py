"""Several real scorer processes of one launcher, and a job that uses them all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leverplus.client import ScorerClient, TrainerClient
from leverplus.data_root import DataRoot
from leverplus.launcher import Ports, Stack
from leverplus.rl_data import read

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

DATASET = "easy-vqa-tiny"
LIMIT_S = 240.0
GENERATE: dict[str, Any] = {
    "dataset": DATASET, "split": "train", "shots": [1, 2], "num_beams": 2, "temps": [1.0], "num_samples_per_temp": 1,
    "num_random": 1, "num_retrieval": 1, "pool": {"sampler": "random", "k": 16},
}  # fmt: skip


def test_a_job_uses_both_scorers(tiny_data: Callable[..., Path], start_stack: Callable[..., Stack]) -> None:
    data = tiny_data(train_images=12, questions_per_image=3)
    said: list[str] = []
    with start_stack(data, report=said.append, ports=Ports.free(scorers=2), devices=("cpu", "cpu")) as stack:
        names = [child.name for child in stack.children]
        assert names == ["valkey", "vqa_scorer", "vqa_scorer-2", "pointer_trainer", "pointer_trainer.worker", "selector_api"]
        first, second = stack.scorer_urls
        assert f"vqa_scorer on {first}, cpu" in said
        assert f"vqa_scorer-2 on {second}, cpu" in said
        with TrainerClient(stack.trainer_url) as trainer:
            trainer.wait(trainer.embed(DATASET), limit_s=LIMIT_S)
            made = trainer.wait(trainer.generate(GENERATE), limit_s=LIMIT_S)
        generated: list[int] = []
        for url in stack.scorer_urls:
            with ScorerClient(url) as scorer:
                generated.append(scorer.stats()["totals"]["generated"])
    assert all(generated), "each answered some"
    assert sum(generated) == made["scores"]["scored"], "and none of them what the other did"
    records = read(DataRoot(data).rl_data(made["rl_data_id"])).records
    assert all(candidate.vqa_acc_score is not None for record in records for candidate in record.candidates)
