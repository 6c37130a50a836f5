"""What the demo keeps, deletes and writes, without its services."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from leverplus.dataset.invented_words import SIZES
from leverplus.demo.config import CUTS, DemoConfig
from leverplus.demo.contact_sheet import Tile, draw_contact_sheet
from leverplus.demo.curl import curl_script
from leverplus.demo.folder import claim_folder, prepare_folder
from leverplus.demo.steps import Outcome
from leverplus.demo.table import print_evaluation
from leverplus.errors import Conflict
from leverplus.launcher import Ports, Stack, StackConfig
from leverplus.scoring import ScoredCandidate

ANSWER = ScoredCandidate(
    pointer=[4, 2], vqa_raw_generation="red", vqa_pred_answer="red", vqa_correct=1, vqa_acc_score=1.0, vqa_eval_mode="file"
)
ROW = {"system": "random", "shots": 1, "n": 2, "mean": 0.5, "low": 0.25, "high": 0.75}
BETTER = {"system": "v3", "baseline": "random", "shots": 1, "baseline_shots": 1, "difference": 0.25, "low": 0.1, "high": 0.4}


def evaluation(differences: list[dict[str, Any]]) -> dict[str, Any]:
    rows = [ROW, {**ROW, "system": "v3", "mean": 0.75, "low": None, "high": None}]
    found = {"rows": rows, "differences": differences, "images": 2, "draws": 100, "seed": 0}
    return {**found, "queries": 2, "answers_source": "replicated", "markdown": "table"}


@pytest.fixture
def config(tmp_path: Path) -> DemoConfig:
    return DemoConfig(tmp_path / "demo", tmp_path / "vlm", "quick")


@pytest.fixture
def outcome(tmp_path: Path) -> Outcome:
    selection = {"query_id": 9, "pointer": [4, 2]}
    return Outcome("rl-1", {"queries": 2}, "ckpt-1", tmp_path / "curve.png", evaluation([]), selection, ANSWER)


def test_a_run_keeps_data_and_embeddings_and_deletes_what_it_makes_anew(config: DemoConfig) -> None:
    claim_folder(config)
    said = prepare_folder(config)
    assert said == "invented-words-quick: 200 train, 40 val, 60 test questions"
    items = (config.data / "datasets" / "invented-words-quick" / "items.jsonl").read_bytes()
    for kept in (
        "embeddings/invented-words-quick/x",
        "checkpoints/ckpt-1/x",
        "rl-data/rl-1.ndjson",
        "store.sqlite",
        "store.sqlite-wal",
    ):
        (config.data / kept).parent.mkdir(parents=True, exist_ok=True)
        (config.data / kept).write_text("x")
    claim_folder(config)
    assert prepare_folder(config) == f"{said} (kept)"
    assert (config.data / "datasets" / "invented-words-quick" / "items.jsonl").read_bytes() == items
    assert (config.data / "embeddings" / "invented-words-quick" / "x").exists()
    left = {path.name for path in config.data.iterdir()}
    assert left == {"demo.json", "datasets", "embeddings"}


def test_a_run_says_that_a_kept_dataset_has_another_seed(config: DemoConfig) -> None:
    said = prepare_folder(config)
    other = prepare_folder(replace(config, seed=1))
    assert other == f"{said} (kept: made with seed 0, not 1; name another folder with --data for that)"


def test_a_folder_with_other_work_is_left_alone(config: DemoConfig) -> None:
    config.data.mkdir()
    (config.data / "store.sqlite").write_text("mine")
    with pytest.raises(Conflict, match=r"store\.sqlite .* --data"):
        claim_folder(config)
    assert (config.data / "store.sqlite").read_text() == "mine"


def test_every_size_stays_within_its_bounds() -> None:
    for cut in CUTS.values():
        each = cut.generate["num_answer"] * len(cut.generate["shots"])
        assert not any(cut.generate[name] for name in ("num_beams", "num_samples_per_temp", "num_random", "num_retrieval"))
        assert not cut.generate["zero_shot"]
        generated = cut.train_queries * each
        # zero-shot once; random five times, best-fixed, three kinds of similar and v3 once for each number of shots
        evaluated = cut.val_queries * (1 + 10 * (len(cut.evaluate_shots) - 1))
        assert sum(SIZES[cut.items].values()) <= 1500
        assert cut.train_queries <= SIZES[cut.items]["train"]
        assert cut.val_queries <= SIZES[cut.items]["val"]
        # Most pools hold fewer answers than are asked for: a run of the standard size scores 2,100 candidates of 6,000.
        assert 0.5 * generated + evaluated <= 8000


def test_curl_lines_carry_the_ids_and_the_ports_of_the_services(config: DemoConfig, outcome: Outcome) -> None:
    stack = Stack(StackConfig(config.data, config.vlm, Ports(1, 2, 3)), "redis://unused")
    script = curl_script(config, stack, outcome)
    assert "TRAINER=http://127.0.0.1:8002" in script
    assert f"leverplus up --data {config.data} --vlm {config.vlm}" in script
    bodies: dict[str, Any] = {}
    for line in script.splitlines():
        words = shlex.split(line, comments=True)
        if "-d" in words:
            bodies[words[2]] = json.loads(words[words.index("-d") + 1])
    assert bodies["$TRAINER/train"]["rl_data"] == ["rl-1"]
    assert bodies["$TRAINER/evaluate"]["checkpoints"] == ["ckpt-1"]
    assert bodies["$SCORER/score"]["queries"] == [{"query_id": 9, "pointers": [[], [4, 2]]}]
    assert bodies["$TRAINER/checkpoints/ckpt-1/promote"]["alias"] == "production"
    assert '"$SELECTOR/select?query_id=9&shots=2"' in script
    kept = curl_script(DemoConfig(config.data, config.vlm, "quick", keep=True), stack, outcome)
    assert "TRAINER=http://127.0.0.1:2\n" in kept


def test_the_table_says_what_may_be_concluded(capsys: pytest.CaptureFixture[str]) -> None:
    report = {"queries": 5, "queries_all_correct": 3, "queries_all_wrong": 1}
    print_evaluation(evaluation([BETTER]), report)
    printed = capsys.readouterr().out
    assert "50.0 [25.0, 75.0]" in printed
    assert "+25.0 [+10.0, +40.0]" in printed
    assert "At 1 shot v3 is better than random." in printed
    assert "of 5 queries all of 3 were right, all of 1 wrong" in printed
    print_evaluation(evaluation([{**BETTER, "low": -0.1}]), report)
    assert "v3 is not shown to differ from random." in capsys.readouterr().out
    print_evaluation(evaluation([{**BETTER, "low": -0.4, "high": -0.1}]), report)
    assert "v3 is worse than random." in capsys.readouterr().out


def test_contact_sheet_shows_each_tile(tmp_path: Path) -> None:
    for name in ("red", "blue"):
        Image.new("RGB", (64, 64), name).save(tmp_path / f"{name}.png")
    tiles = [
        Tile("demonstration", tmp_path / "red.png", ("a long question " * 5,)),
        Tile("query", tmp_path / "blue.png", ("?",), True),
    ]
    draw_contact_sheet(tiles, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 16 + 2 * (224 + 16)
        assert sheet.getpixel((16 + 112, 150)) == (255, 0, 0)
        assert sheet.getpixel((16 + 240 + 112, 150)) == (0, 0, 255)
