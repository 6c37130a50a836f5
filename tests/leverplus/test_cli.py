"""The command line as a user meets it: in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from leverplus.dataset import Dataset
from leverplus.fingerprint import Fingerprint
from leverplus.ids import ItemId
from leverplus.rl_data import Candidate, QueryRecord, read, write


def leverplus(*arguments: str | Path, data: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LEVERPLUS_")}
    environment.pop("REDIS_URL", None)
    return subprocess.run(
        [sys.executable, "-c", "from leverplus.cli import app; app()", *map(str, arguments)],
        env={**environment, "LEVERPLUS_DATA": str(data), "NO_COLOR": "1", **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def assert_one_line_error(answer: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert answer.returncode == 2, answer
    assert answer.stderr.startswith("error: ")
    assert answer.stderr.count("\n") == 1
    for part in parts:
        assert part in answer.stderr


@pytest.fixture
def vqa_files(tmp_path: Path) -> tuple[Path, Path]:
    questions = {"questions": [{"question_id": 7 + n, "image_id": n, "question": f"what is {n}?"} for n in range(3)]}
    annotations = {
        "annotations": [
            {"question_id": 7 + n, "image_id": n, "answers": [{"answer": f"a{n}", "answer_id": i} for i in range(1, 11)]}
            for n in range(3)
        ]
    }
    paths = tmp_path / "q.json", tmp_path / "a.json"
    for path, value in zip(paths, (questions, annotations), strict=True):
        path.write_text(json.dumps(value))
    return paths


def candidate(*pointer: int, accuracy: float | None = 1.0, method: str = "random", mode: Any = "file") -> Candidate:
    correct = None if accuracy is None else int(accuracy > 0)
    pointed = tuple(map(ItemId, pointer))
    return Candidate(pointed, method, vqa_correct=correct, vqa_acc_score=accuracy, vqa_eval_mode=mode)


def record(query_id: int, *candidates: Candidate, pool: tuple[int, ...] = (0, 1, 2, 3)) -> QueryRecord:
    return QueryRecord(ItemId(query_id), {}, tuple(map(ItemId, pool)), candidates)


def test_help_needs_nothing_heavy(tmp_path: Path) -> None:
    answer = leverplus("--help", data=tmp_path)
    assert answer.returncode == 0
    for command in ("import", "embed", "pool", "rl", "score", "train", "evaluate", "promote", "select", "import-reference"):
        assert command in answer.stdout
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, leverplus.cli; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    assert not {"torch", "numpy", "pydantic", "sqlalchemy", "matplotlib"} & set(loaded.stdout.split())


def test_import_of_vqa_files_without_images(tmp_path: Path, vqa_files: tuple[Path, Path]) -> None:
    questions, annotations = vqa_files
    answer = leverplus(
        "import", "vqa", "tiny", "--questions", f"val={questions}", "--annotations", f"val={annotations}", "--no-images",
        data=tmp_path,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    dataset = Dataset.open(tmp_path / "datasets" / "tiny")
    assert [item.question_id for item in dataset.items] == ["7", "8", "9"]
    assert dataset.item(2).answer == "a2"
    again = leverplus("import", "vqa", "tiny", "--questions", f"val={questions}", "--no-images", data=tmp_path)
    assert_one_line_error(again, "exists already")


def test_import_says_what_is_missing(tmp_path: Path, vqa_files: tuple[Path, Path]) -> None:
    questions, _ = vqa_files
    answer = leverplus("import", "vqa", "tiny", "--questions", f"val={questions}", data=tmp_path)
    assert_one_line_error(answer, "--images", "--no-images")
    answer = leverplus("import", "vqa", "tiny", "--questions", str(questions), "--no-images", data=tmp_path)
    assert_one_line_error(answer, "SPLIT=FILE")
    answer = leverplus("import", "vqa", "tiny", "--questions", "val=nothing.json", "--no-images", data=tmp_path)
    assert_one_line_error(answer, "nothing.json")
    assert not (tmp_path / "datasets" / "tiny").exists()


def test_pool_of_a_query(tmp_path: Path, vqa_files: tuple[Path, Path]) -> None:
    questions, _ = vqa_files
    leverplus("import", "vqa", "tiny", "--questions", f"train={questions}", "--no-images", data=tmp_path)
    answer = leverplus("pool", "tiny", "--question-id", "8", "-k", "2", "--json", data=tmp_path)
    assert answer.returncode == 0, answer.stderr
    value = json.loads(answer.stdout)
    assert value["query_id"] == 1
    assert sorted(value["pool"]) == [0, 2]
    assert_one_line_error(leverplus("pool", "tiny", "--query-id", "3", data=tmp_path), "ids 0 to 2")
    assert_one_line_error(leverplus("pool", "tiny", "--query-id", "1", "-k", "3", data=tmp_path), "pool.k")
    assert_one_line_error(leverplus("pool", "tiny", data=tmp_path), "--query-id")
    assert_one_line_error(leverplus("pool", "none", "--query-id", "1", data=tmp_path), "leverplus import")
    assert_one_line_error(leverplus("pool", "../x", "--query-id", "1", data=tmp_path), "no valid name")


def test_rl_files_inspected_converted_filtered_and_merged(tmp_path: Path) -> None:
    source = tmp_path / "rl.json"
    flat = record(9, candidate(0), candidate(1))
    rich = record(8, candidate(0), candidate(1, accuracy=0.0), candidate(2, 3, accuracy=None, mode="error"))
    write(source, [flat, rich], fingerprint=Fingerprint(metric={"v": 1}), meta={})
    report = json.loads(leverplus("rl", "inspect", source, "--json", data=tmp_path).stdout)
    assert (report["queries"], report["candidates"]) == (2, 5)
    assert report["modes"]["error"]["count"] == 1

    converted = tmp_path / "rl.ndjson"
    assert leverplus("rl", "convert", source, converted, data=tmp_path).returncode == 0
    assert read(converted).records == read(source).records

    kept = tmp_path / "kept.ndjson"
    answer = leverplus("rl", "filter", source, kept, "--eval-mode", "file", "--drop-flat", data=tmp_path)
    assert answer.returncode == 0, answer.stderr
    found = read(kept)
    assert [(each.query_id, len(each.candidates)) for each in found.records] == [(8, 2)]
    assert found.records[0].candidate_pool_ids == (0, 1, 2, 3)
    assert found.fingerprint == Fingerprint(metric={"v": 1})
    empty = leverplus("rl", "filter", source, tmp_path / "no.json", "--shots", "4", data=tmp_path)
    assert_one_line_error(empty, "nothing was written")
    assert not (tmp_path / "no.json").exists()

    other = tmp_path / "other.json"
    more = record(9, candidate(0), candidate(2, accuracy=0.0))
    write(other, [more, record(7, candidate(3))], fingerprint=Fingerprint(metric={"v": 1}), meta={})
    merged = tmp_path / "merged.json"
    assert leverplus("rl", "merge", merged, source, other, data=tmp_path).returncode == 0
    assert [(each.query_id, len(each.candidates)) for each in read(merged).records] == [(7, 1), (8, 3), (9, 3)]


def test_merge_refuses_what_does_not_belong_together(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.json" for name in "abc"]
    write(paths[0], [record(9, candidate(0))], fingerprint=Fingerprint(metric={"v": 1}), meta={})
    write(paths[1], [record(9, candidate(0))], fingerprint=Fingerprint(metric={"v": 2}), meta={})
    write(paths[2], [record(9, candidate(0), pool=(0, 1))], fingerprint=Fingerprint(metric={"v": 1}), meta={})
    target = tmp_path / "merged.json"
    assert_one_line_error(leverplus("rl", "merge", target, paths[0], paths[1], data=tmp_path), "metric.v", "1", "2")
    assert_one_line_error(leverplus("rl", "merge", target, paths[0], paths[2], data=tmp_path), "query 9", "pool")
    assert not target.exists()


def test_services_that_are_away_and_missing_files_are_one_line(tmp_path: Path) -> None:
    away = {"LEVERPLUS_TRAINER_URL": "http://127.0.0.1:9", "LEVERPLUS_SELECTOR_URL": "http://127.0.0.1:9"}
    assert_one_line_error(leverplus("train", "rl-1", data=tmp_path, **away), "pointer_trainer is away")
    assert_one_line_error(leverplus("select", "--query-id", "1", data=tmp_path, **away), "selector_api is away")
    assert_one_line_error(leverplus("train", "rl-1", "--config", "no.toml", data=tmp_path, **away), "no.toml")
    assert_one_line_error(leverplus("train", "rl-1", "--set", "a b", data=tmp_path, **away), "FIELD=VALUE")
    assert_one_line_error(leverplus("rl", "inspect", tmp_path / "no.json", data=tmp_path), "no.json")
    assert_one_line_error(leverplus("up", "--vlm", tmp_path / "no", data=tmp_path), "no model directory")


def test_demo_refuses_a_folder_with_other_work(tmp_path: Path) -> None:
    data = tmp_path / "work"
    (data / "checkpoints" / "mine").mkdir(parents=True)
    assert_one_line_error(leverplus("demo", "--data", data, data=tmp_path), "was not made by the demo")
    assert (data / "checkpoints" / "mine").is_dir()


def test_doctor_finds_an_altered_dataset(tmp_path: Path, vqa_files: tuple[Path, Path]) -> None:
    questions, _ = vqa_files
    leverplus("import", "vqa", "tiny", "--questions", f"train={questions}", "--no-images", data=tmp_path)
    items = tmp_path / "datasets" / "tiny" / "items.jsonl"
    items.write_bytes(items.read_bytes().replace(b"what", b"That"))
    answer = leverplus("doctor", data=tmp_path)
    assert answer.returncode == 1
    assert "import again" in " ".join(answer.stdout.replace("│", " ").split())
