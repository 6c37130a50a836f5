"""The pure parts of benchmarks/online_rounds.py: commands, and results of several invocations in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
from online_rounds import Plan, put
from quality_systems import AGAIN, FIRST

BOUNDS = {"random": np.array([0.123456, 0.2]), "oracle": np.array([1.0, 0.9])}


def test_a_round_is_generated_by_what_was_trained_before() -> None:
    plan = Plan(queries=40, rounds=1, seed=7, with_answers=False, new_queries=False)
    shared = "rl generate invented-words --queries 40 --seed 7 --shots 1 --shots 2"
    first = "--num-beams 2 --num-samples-per-temp 1 --temp 1.0 --num-random 1 --num-retrieval 1"
    again = "--num-beams 1 --num-samples-per-temp 4 --temp 1.0 --temp 2.0 --num-random 0 --num-retrieval 0 --no-zero-shot"
    assert FIRST["num_beams"] == 2
    assert AGAIN["zero_shot"] is False
    assert " ".join(plan.generate(0, None)) == f"{shared} {first}"
    assert " ".join(plan.generate(1, "ckpt-1")) == f"{shared} {again} --checkpoint ckpt-1"


def test_new_queries_are_drawn_with_another_seed_in_every_round() -> None:
    plan = Plan(queries=40, rounds=2, seed=7, with_answers=False, new_queries=True)
    seeds = [arguments[arguments.index("--seed") + 1] for arguments in (plan.generate(number, None) for number in range(3))]
    assert seeds == ["7", "1007", "2007"]


def test_a_run_is_put_in_the_place_of_the_one_that_it_repeats(tmp_path: Path) -> None:
    path = tmp_path / "results.json"

    def run(system: str, seed: int, closed: float) -> dict[str, Any]:
        return {"system": system, "queries": 40, "seed": seed, "closed": closed}

    for one in (run("b", 0, 0.1), run("a", 1, 0.2), run("b", 0, 0.3)):
        put(path, one, BOUNDS)
    found = orjson.loads(path.read_bytes())
    assert found["runs"] == [run("a", 1, 0.2), run("b", 0, 0.3)]
    assert found["references"] == {"random": [0.1235, 0.2], "oracle": [1.0, 0.9]}
