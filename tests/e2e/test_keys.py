"""The whole stack with keys: jobs reach the scorer, nobody else reaches anything, and no secret is left anywhere."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leverplus.cli.options import require_scorer_key
from leverplus.client import ScorerClient, TrainerClient
from leverplus.errors import InvalidConfig, NotAllowed, NotAuthenticated
from leverplus.keys import new_key
from leverplus.launcher import Stack
from leverplus.selector_client import SelectorClient

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

DATASET = "easy-vqa-tiny"
LIMIT_S = 240.0
GENERATE: dict[str, Any] = {
    "dataset": DATASET, "split": "train", "shots": [1], "num_beams": 1, "temps": [], "num_random": 1, "num_retrieval": 1,
    "pool": {"sampler": "random", "k": 8},
}  # fmt: skip


def test_a_job_and_its_scorer_with_keys(
    tmp_path: Path, tiny_data: Callable[..., Path], start_stack: Callable[..., Stack]
) -> None:
    data = tiny_data()
    made = {name: new_key(name, role) for name, role in (("reader", "read"), ("worker", "write"), ("chief", "admin"))}
    (tmp_path / "keys").write_text("\n".join(line for _, line in made.values()))
    keys = {name: key for name, (key, _) in made.items()}
    unused = secrets.token_urlsafe(16)
    variables = {
        "LEVERPLUS_KEYS": str(tmp_path / "keys"),
        "LEVERPLUS_SCORER_KEY": keys["worker"],
        "LEVERPLUS_OPENAI_API_KEY": unused,
    }
    with start_stack(data, variables=variables) as stack:
        with TrainerClient(stack.trainer_url, key=keys["worker"]) as trainer:
            trainer.wait(trainer.embed(DATASET), limit_s=LIMIT_S)
            result = trainer.wait(trainer.generate(GENERATE), limit_s=LIMIT_S)
            assert result["scores"]["scored"] > 0
            with pytest.raises(NotAllowed, match=r"key 'worker' has the role write, .* needs admin"):
                trainer.prune_checkpoints({"keep_best": 1})
        with ScorerClient(stack.scorer_url, key=keys["reader"]) as scorer:
            assert scorer.stats()["totals"]["generated"] > 0
        with SelectorClient(stack.selector_url, key=keys["reader"]) as selector:
            assert selector.deployments() == []
        for url in (stack.scorer_url, stack.trainer_url, stack.selector_url):
            with ScorerClient(url) as nobody, pytest.raises(NotAuthenticated):
                nobody.stats()
    told = (data / "logs" / "pointer_trainer.log").read_text()
    assert "leverplus.audit" in told
    assert "worker POST /rl-data/generate: 202" in told
    for path in (path for path in data.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for secret in (*keys.values(), unused):
            assert secret.encode() not in content, path


def test_up_asks_for_the_key_of_its_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEVERPLUS_KEYS", "/keys")
    with pytest.raises(InvalidConfig, match="LEVERPLUS_SCORER_KEY"):
        require_scorer_key()
    monkeypatch.setenv("LEVERPLUS_SCORER_KEY", "x")
    require_scorer_key()
