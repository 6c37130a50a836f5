"""The command line as a user meets it: in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from leverplus.checkpoints import read_info
from leverplus.dataset import Dataset
from leverplus.doctor import service_findings
from leverplus.embeddings import Embeddings
from leverplus.fingerprint import Fingerprint
from leverplus.ids import ItemId
from leverplus.launcher import Ports
from leverplus.launcher.process_table import start_time
from leverplus.rl_data import Candidate, QueryRecord, read, write
from leverplus.scoring import ScoreStats
from leverplus.selector import PointerSelectorV3, SelectorConfig


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


class Listener:
    """A service's place on this machine: answers every request with `answer`, and keeps what it was sent."""

    def __init__(self, answer: Any) -> None:
        self.paths: list[str] = []
        self.bodies: list[Any] = []
        self.authorizations: list[str | None] = []
        paths, bodies, authorizations = self.paths, self.bodies, self.authorizations

        class Handler(BaseHTTPRequestHandler):
            def do_DELETE(self) -> None:
                bodies.append(self.path)
                self.do_GET()

            def do_POST(self) -> None:
                bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.do_GET()

            def do_GET(self) -> None:
                paths.append(self.path)
                authorizations.append(self.headers["Authorization"])
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join(timeout=10)


@pytest.fixture
def trainer() -> Generator[Listener]:
    listener = Listener({"job_id": "job-1", "status": "live"})
    yield listener
    listener.close()


@pytest.fixture
def old_data(tmp_path: Path) -> Path:
    """A data folder with dataset `old`: train items 0 to 4, the first two of one image, val 5 and 6; and what `pair` holds."""
    data = tmp_path / "data"
    for split, images in (("train", [1, 1, 2, 3, 4]), ("val", [5, 6])):
        listed = [{"question_id": 100 * len(split) + n, "image_id": image, "question": "what?"} for n, image in enumerate(images)]
        notes = [{**each, "answers": [{"answer": "x", "answer_id": 1}]} for each in listed]
        (tmp_path / f"{split}.json").write_text(json.dumps({"questions": listed}))
        (tmp_path / f"{split}-a.json").write_text(json.dumps({"annotations": notes}))
        (tmp_path / split).mkdir()
        for name in ("query", "candidate"):
            rows = torch.randn(len(images), 8, generator=torch.Generator().manual_seed(len(name)))
            torch.save(rows, tmp_path / split / f"{name}_embeddings.pt")
    answer = leverplus(
        "import", "vqa", "old", "--no-images", "--questions", f"train={tmp_path / 'train.json'}",
        "--questions", f"val={tmp_path / 'val.json'}", "--annotations", f"train={tmp_path / 'train-a.json'}",
        "--annotations", f"val={tmp_path / 'val-a.json'}", data=data,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    return data


def test_help_needs_nothing_heavy(tmp_path: Path) -> None:
    answer = leverplus("--help", data=tmp_path)
    assert answer.returncode == 0
    for command in (
        "import",
        "embed",
        "pool",
        "rl",
        "score",
        "train",
        "sweep",
        "evaluate",
        "promote",
        "select",
        "import-reference",
    ):
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


def test_rl_commands_answer_json_and_draw(tmp_path: Path) -> None:
    source, target, plot = tmp_path / "rl.json", tmp_path / "kept.ndjson", tmp_path / "rl.png"
    records = [record(9, candidate(0), candidate(1)), record(8, candidate(0), candidate(1, accuracy=0.0))]
    write(source, records, fingerprint=Fingerprint(metric={"v": 1}), meta={})
    answer = leverplus("rl", "inspect", source, "--plot", plot, data=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "by number of shots" in answer.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")
    answer = leverplus("rl", "filter", source, target, "--balanced", "0.4-0.6", "--json", data=tmp_path)
    assert answer.returncode == 0, answer.stderr
    told = json.loads(answer.stdout)
    assert (told["queries"], told["candidates"], told["dropped"]["candidates"]) == (1, 2, 2)
    assert read(target).meta["filtered"] == [{"balanced": [0.4, 0.6]}]
    assert_one_line_error(leverplus("rl", "filter", source, target, "--balanced", "half", data=tmp_path), "0.4-0.6")
    legacy = tmp_path / "legacy.json"
    legacy.write_text(json.dumps({"7": {"id_list": [[1, 7]], "score_list": [-0.5]}}))
    assert_one_line_error(leverplus("rl", "convert", legacy, target, data=tmp_path), "--info-score")
    answer = leverplus("rl", "convert", legacy, target, "--info-score", "lower", "--json", data=tmp_path)
    assert json.loads(answer.stdout) == {
        "file": str(target),
        "queries": 1,
        "candidates": 1,
        "dropped": {"candidates": 0, "queries": 0, "reasons": {}},
    }
    assert read(target).records[0].candidates[0].info_score == 0.5


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
    assert_one_line_error(leverplus("train", "rl-1", "--config", tmp_path, data=tmp_path, **away), "Is a directory")
    assert_one_line_error(leverplus("train", "rl-1", "--set", "a", data=tmp_path, **away), "FIELD=VALUE")
    strange = leverplus("train", "rl-1", data=tmp_path, LEVERPLUS_TRAINER_URL="foo")
    assert_one_line_error(strange, "'foo' is no URL", "http://")
    assert_one_line_error(leverplus("promote", "../x", "--reason", "y", data=tmp_path, **away), "'../x' is no valid name")
    file = tmp_path / "file"
    file.write_text("x")
    assert_one_line_error(leverplus("import", "easy-vqa", data=file), f"--data: {file} is not a folder")
    assert_one_line_error(leverplus("import", "easy-vqa", data=file / "below"), "Not a directory")
    assert_one_line_error(leverplus("up", data=file), "is not a folder")
    assert leverplus("up", "--scorer-port", "99999", data=tmp_path).returncode == 2
    equal = leverplus("up", "--scorer-port", "8002", data=tmp_path)
    assert_one_line_error(equal, "--trainer-port: 8002 is the scorer's port too")
    assert_one_line_error(leverplus("rl", "inspect", tmp_path / "no.json", data=tmp_path), "no.json")
    assert_one_line_error(leverplus("up", "--vlm", tmp_path / "no", data=tmp_path), "no model directory")


def test_demo_refuses_a_folder_with_other_work(tmp_path: Path) -> None:
    data = tmp_path / "work"
    (data / "checkpoints" / "mine").mkdir(parents=True)
    assert_one_line_error(leverplus("demo", "--data", data, data=tmp_path), "was not made by the demo")
    assert (data / "checkpoints" / "mine").is_dir()


def test_a_target_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    source, target = tmp_path / "rl.json", tmp_path / "new.json"
    write(source, [record(9, candidate(1))], fingerprint=Fingerprint(metric={"v": 1}), meta={})
    target.mkdir()
    assert_one_line_error(leverplus("rl", "convert", source, target, data=tmp_path), "Is a directory")
    assert_one_line_error(leverplus("rl", "convert", source, tmp_path / "no" / "x.json", data=tmp_path), "no folder")
    assert not (tmp_path / "no").exists()


def test_a_write_that_fails_names_the_file_that_was_being_made(tmp_path: Path) -> None:
    program = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); from leverplus.cli import app; app()"
    answer = subprocess.run(
        [sys.executable, "-c", program, "import", "easy-vqa", "--train-images", "300", "--test-images", "2"],
        env={**os.environ, "LEVERPLUS_DATA": str(tmp_path / "data")}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert_one_line_error(answer, str(tmp_path / "data" / "datasets"), "easy-vqa", "File too large")
    assert list((tmp_path / "data" / "datasets").iterdir()) == []


def test_doctor_finds_a_damaged_store_and_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "store.sqlite").write_bytes(b"no database" * 100)
    answer = leverplus("doctor", data=tmp_path)
    assert answer.returncode == 1
    assert "file is not a database" in " ".join(answer.stdout.replace("│", " ").split())
    answer = leverplus("doctor", data=tmp_path / "store.sqlite")
    assert answer.returncode in (1, 2)
    assert "Traceback" not in answer.stderr
    assert "is not a folder" in " ".join((answer.stdout + answer.stderr).replace("│", " ").split())


def test_doctor_finds_an_altered_dataset(tmp_path: Path, vqa_files: tuple[Path, Path]) -> None:
    questions, _ = vqa_files
    leverplus("import", "vqa", "tiny", "--questions", f"train={questions}", "--no-images", data=tmp_path)
    items = tmp_path / "datasets" / "tiny" / "items.jsonl"
    items.write_bytes(items.read_bytes().replace(b"what", b"That"))
    answer = leverplus("doctor", data=tmp_path)
    assert answer.returncode == 1
    assert "import again" in " ".join(answer.stdout.replace("│", " ").split())


def test_tables_of_the_training_configuration_are_merged(tmp_path: Path, trainer: Listener) -> None:
    config = tmp_path / "c.toml"
    config.write_text('rce_epochs = 3\n[reward]\nmode = "legacy"\nalpha = 0.1\nbeta = 1.0\n')
    settings = ["--set", "reward.alpha=0.5", "--set", "reward.use_logprob=true", "--set", "rce_lr=1e-3"]
    sent = [
        (["--set", "reward.mode=hybrid", "--set", "reward.alpha=0.5"], {"reward": {"mode": "hybrid", "alpha": 0.5}}),
        (
            ["--config", str(config), *settings],
            {"rce_epochs": 3, "rce_lr": 1e-3, "reward": {"mode": "legacy", "alpha": 0.5, "beta": 1.0, "use_logprob": True}},
        ),
    ]
    for options, expected in sent:
        answer = leverplus("train", "rl-1", *options, "--no-wait", data=tmp_path, LEVERPLUS_TRAINER_URL=trainer.url)
        assert answer.stdout == "job-1\n", answer
        assert trainer.bodies.pop() == {"rl_data": ["rl-1"], "config": expected}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rce_lr = nan", "config.rce_lr is nan"),
        ("seed = 2026-01-02", "config.seed is datetime.date(2026, 1, 2)"),
        ("temps = [1.0, inf]", "config.temps.1 is inf"),
    ],
)
def test_what_toml_can_say_and_json_cannot_is_one_line(tmp_path: Path, trainer: Listener, text: str, words: str) -> None:
    config = tmp_path / "c.toml"
    config.write_text(text)
    answer = leverplus("train", "rl-1", "--config", str(config), data=tmp_path, LEVERPLUS_TRAINER_URL=trainer.url)
    assert_one_line_error(answer, words, "which JSON cannot hold")
    assert trainer.bodies == []


def test_a_sweep_is_sent_as_its_file_says_with_the_rl_data_of_the_command(tmp_path: Path, trainer: Listener) -> None:
    config = tmp_path / "grid.toml"
    config.write_text('[base.config]\nrce_epochs = 3\n[axes]\n"reward.mode" = ["separated"]\nseed = [0, 1]\n')
    given = ["sweep", str(config), "--rl-data", "rl-1", "--rl-data", "rl-2", "--no-wait"]
    answer = leverplus(*given, data=tmp_path, LEVERPLUS_TRAINER_URL=trainer.url)
    assert answer.stdout == "job-1\n", answer
    assert trainer.bodies == [
        {
            "base": {"rl_data": ["rl-1", "rl-2"], "config": {"rce_epochs": 3}},
            "axes": {"reward.mode": ["separated"], "seed": [0, 1]},
        }
    ]
    assert_one_line_error(leverplus("sweep", str(config), data=tmp_path), "names no rl_data under [base]", "--rl-data")
    assert_one_line_error(leverplus("sweep", "no.toml", data=tmp_path), "CONFIG: no.toml")


def test_a_sweep_is_shown_as_a_table_with_what_is_to_be_known(tmp_path: Path) -> None:
    unknown = dict.fromkeys(("held_out_expected_reward", "held_out_rce", "epoch", "checkpoint_id", "held_out_expected_accuracy"))
    done = {"held_out_expected_accuracy": 0.625, "held_out_expected_reward": 1.25, "held_out_rce": 2.0, "epoch": 4}
    done |= {"checkpoint_id": "ckpt-2", "reason": None}
    rows: list[dict[str, Any]] = [
        {
            "number": 2,
            "values": {"seed": 1},
            "job_id": "job-1-002",
            "state": "succeeded",
            "reason": None,
            "checkpoint_id": "ckpt-2",
        },
        {**unknown, "number": 1, "values": {"seed": 0}, "job_id": "job-1-001", "state": "failed", "reason": "no luck"},
    ]
    result = {"names": ["seed"], "rows": [{**rows[0], **done}, rows[1]], "notes": ["Read it so."], "checkpoint_id": "ckpt-2"}
    result["markdown"] = "| child | seed |\n| --- | --- |\n| 2 | 1 |\n"
    job = {"id": "job-1", "kind": "sweep", "status": "succeeded", "error": None, "progress": {"phase": "train"}}
    listener = Listener({"job_id": "job-1", **job, "result": result})
    config = tmp_path / "grid.toml"
    config.write_text("[axes]\nseed = [0, 1]\n")
    try:
        shown = leverplus("sweep", config, "--rl-data", "rl-1", data=tmp_path, LEVERPLUS_TRAINER_URL=listener.url)
        later = leverplus("jobs", "show", "job-1", data=tmp_path, LEVERPLUS_TRAINER_URL=listener.url)
    finally:
        listener.close()
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    [best] = [line for line in lines if "ckpt-2" in line and "succeeded" in line]
    assert all(value in best for value in ("0.6250", "1.2500", "2.0000"))
    assert lines[-2:] == ["job-1-001 failed: no luck", "Read it so."]
    assert later.stdout == f"job-1  sweep  succeeded  train\n{result['markdown']}\n"


def test_checkpoints_are_listed_deleted_and_pruned(tmp_path: Path) -> None:
    info = {"checkpoint_id": "ckpt-1", "dataset": "d", "created_at": "2025-01-02T03:04:05.678+00:00"}
    answer = {
        "checkpoints": [
            {**info, "metrics": {"held_out_expected_accuracy": 0.625}},
            {**info, "checkpoint_id": "ckpt-2", "metrics": {}},
        ],
        "broken": [{"name": "ckpt-3", "reason": "not JSON"}],
        "test_openings": {"toy": [{"by": "me", "at": "2026-01-02T03:04:05.678+00:00"}]},
        "deployments": [{"alias": "production", "checkpoint_id": "ckpt-1"}],
        "deleted": [{"name": "ckpt-2", "bytes": 3 * 2**20}],
        "kept": [{"name": "ckpt-1", "reason": "alias 'production' serves it"}],
        "bytes": 3 * 2**20,
    }
    listener = Listener(answer)
    url = {"LEVERPLUS_TRAINER_URL": listener.url}
    try:
        listed = leverplus("checkpoints", "list", data=tmp_path, **url)
        deleted = leverplus("checkpoints", "delete", "ckpt-2", data=tmp_path, **url)
        would = leverplus("checkpoints", "delete", "ckpt-2", "--dry-run", data=tmp_path, **url)
        pruned = leverplus("checkpoints", "prune", "--keep-best", "2", "--older-than", "30", "--dry-run", data=tmp_path, **url)
        run = leverplus("jobs", "delete-run", "job-1", data=tmp_path, **url)
    finally:
        listener.close()
    [first] = [line for line in listed.stdout.splitlines() if "ckpt-1" in line]
    assert all(part in first for part in ("2025-01-02T03:04:05", "0.6250", "production"))
    assert "ckpt-3 cannot be read: not JSON" in listed.stdout
    assert "test split of toy: opened 1 times, last by me on 2026-01-02T03:04 UTC" in listed.stdout
    assert (deleted.stdout, would.stdout) == ("deleted ckpt-2, 3.0 MiB\n", "would delete ckpt-2, 3.0 MiB\n")
    assert run.stdout == "deleted the run of job-1, 3.0 MiB\n"
    assert "alias 'production' serves it" in pruned.stdout
    assert pruned.stdout.splitlines()[-1] == "1 checkpoint would go, 3.0 MiB"
    assert listener.bodies == [
        "/checkpoints/ckpt-2?dry_run=false",
        "/checkpoints/ckpt-2?dry_run=true",
        {"keep_best": 2, "older_than_days": 30.0, "dry_run": True},
        "/jobs/job-1/run?dry_run=false",
    ]


def test_what_generation_is_told_is_sent_and_the_rest_is_left_to_the_service(tmp_path: Path, trainer: Listener) -> None:
    options = ["--no-wait", "--shots", "1", "--shots", "2", "--num-beams", "3", "--temp", "0.7", "--num-samples-per-temp", "4"]
    options += ["--num-random", "0", "--num-retrieval", "2", "--sampler", "similar_joint", "-k", "16", "--pool-seed", "5"]
    options += ["--candidate-split", "val", "--seed", "9", "--dry-run"]
    options += ["--gt-prob", "--info-score", "--shard-queries", "50"]
    options += ["--logging-draws", "8", "--epsilon", "0.5", "--logging-temp", "1", "--logging-temp", "2"]
    plain = {"dataset": "d", "split": "train", "queries": None, "checkpoint": None}
    for given, expected in [
        (["--no-wait"], {"shots": [2], "seed": 0, "dry_run": False, "pool": {}}),
        (
            options,
            {
                "shots": [1, 2],
                "num_beams": 3,
                "temps": [0.7],
                "num_samples_per_temp": 4,
                "num_random": 0,
                "num_retrieval": 2,
                "pool": {"sampler": "similar_joint", "k": 16, "seed": 5, "candidate_split": "val"},
                "seed": 9,
                "dry_run": True,
                "gt_prob": True,
                "info_score": True,
                "shard_queries": 50,
                "logging": {"draws": 8, "epsilon": 0.5, "temperatures": [1.0, 2.0]},
            },
        ),
    ]:
        answer = leverplus("rl", "generate", "d", *given, data=tmp_path, LEVERPLUS_TRAINER_URL=trainer.url)
        assert answer.returncode == 0, answer.stderr
        assert trainer.bodies.pop() == plain | expected


def test_score_shows_probabilities_where_they_were_asked_for(tmp_path: Path) -> None:
    row = {"pointer": [4, 17], "vqa_raw_generation": " red", "vqa_pred_answer": "red", "vqa_correct": 1, "vqa_acc_score": 0.9}
    row |= {"vqa_eval_mode": "file", "vqa_gt_prob": 1.25, "info_score": -0.125}
    stats = ScoreStats.counted(file=1, fallback=0, error=0, cached=0).model_dump()
    listener = Listener({"fingerprint": {}, "results": [{"query_id": 3, "candidates": [row]}], "stats": stats})
    asked = ["score", "d", "--query-id", "3", "--pointer", "4,17"]
    try:
        plain = leverplus(*asked, data=tmp_path, LEVERPLUS_SCORER_URL=listener.url)
        full = leverplus(*asked, "--gt-prob", "--info-score", data=tmp_path, LEVERPLUS_SCORER_URL=listener.url)
    finally:
        listener.close()
    assert plain.returncode == full.returncode == 0, plain.stderr + full.stderr
    assert "0.9" in plain.stdout
    assert "info_score" not in plain.stdout
    assert "1.25" in full.stdout
    assert "-0.125" in full.stdout
    flags = [(body["options"]["gt_prob"], body["options"]["info_score"]) for body in listener.bodies]
    assert flags == [(False, False), (True, True)]


def test_a_job_is_told_as_it_starts_and_its_id_stands_in_a_line(tmp_path: Path) -> None:
    job = {"id": "job-1", "kind": "train", "status": "succeeded", "error": None, "progress": {"phase": "train"}}
    result = {"checkpoint_id": "ckpt-1", "metrics": {"epoch": 2, "deep": {"x": 1}}}
    listener = Listener({"job_id": "job-1", "jobs": [job], **job, "result": result})
    try:
        url = {"LEVERPLUS_TRAINER_URL": listener.url}
        train = leverplus("train", "rl-1", data=tmp_path, **url)
        as_json = leverplus("train", "rl-1", "--json", data=tmp_path, **url)
        listed = leverplus("jobs", "list", data=tmp_path, **url)
        shown = leverplus("jobs", "show", "job-1", data=tmp_path, **url)
    finally:
        listener.close()
    assert "job job-1; `leverplus jobs cancel job-1` ends it" in train.stderr
    assert "checkpoint ckpt-1\n" in train.stdout
    assert "metrics.epoch" in train.stdout
    assert json.loads(as_json.stdout) == result
    assert "succeeded" in listed.stdout
    assert shown.stdout.startswith("job-1  train  succeeded  train\n")


def test_embeddings_of_the_reference_are_imported(tmp_path: Path, old_data: Path) -> None:
    answer = leverplus("import", "embeddings", "old", tmp_path / "train", data=old_data)
    assert answer.returncode == 0, answer.stderr
    assert "5 of 7 items (split train), d_model 8" in answer.stdout
    again = leverplus("import", "embeddings", "old", tmp_path / "val", "--split", "val", data=old_data)
    assert_one_line_error(again, "--overwrite")
    doctor = " ".join(leverplus("doctor", data=old_data).stdout.replace("│", " ").split())
    assert "embeddings old ok 5 of 7 items, d_model 8" in doctor
    both = leverplus(
        "import", "embeddings", "old", tmp_path / "train", f"val={tmp_path / 'val'}", "--overwrite", data=old_data
    )  # fmt: skip
    assert "7 of 7 items (split train, val)" in both.stdout
    assert Embeddings.open(old_data / "embeddings" / "old").known.all()
    wrong = leverplus("import", "embeddings", "old", f"val={tmp_path / 'train'}", "--overwrite", data=old_data)
    assert_one_line_error(wrong, "5 rows", "split 'val' of dataset 'old' has 2")
    twice = leverplus("import", "embeddings", "old", tmp_path / "train", tmp_path / "val", "--overwrite", data=old_data)
    assert_one_line_error(twice, "split 'train' is named twice")


def test_an_imported_checkpoint_gets_pools_that_can_be_drawn(tmp_path: Path, old_data: Path) -> None:
    leverplus("import", "embeddings", "old", tmp_path / "train", data=old_data)
    torch.save(PointerSelectorV3(SelectorConfig(d_model=8, hidden_dim=8)).state_dict(), tmp_path / "old.pt")
    ids = tmp_path / "ids.json"
    ids.write_text("[0, 1, 4]")

    def bring(name: str, *options: str | Path) -> subprocess.CompletedProcess[str]:
        return leverplus("import-reference", tmp_path / "old.pt", name, "--dataset", "old", *options, data=old_data)

    # Items 0 and 1 show one image, so each has three candidates.
    assert_one_line_error(bring("c"), "pool.k: 64", "has 3 candidates")
    assert_one_line_error(bring("c", "--k", "4"), "pool.k: 4", "has 3 candidates")
    assert_one_line_error(bring("c", "--k", "2", "--candidate-split", "test"), "split 'test'")
    assert_one_line_error(bring("c", "--sampler", "from_pointers"), "--pool-ids")
    assert_one_line_error(bring("c", "--sampler", "random", "--pool-ids", ids), "'random'", "belong to sampler 'from_pointers'")
    assert_one_line_error(bring("c", "--pool-ids", tmp_path / "none.json"), "none.json")
    assert_one_line_error(bring("c", "--pool-ids", tmp_path / "train.json"), "JSON list of item ids")
    assert not (old_data / "checkpoints" / "c").exists()
    assert bring("three", "--k", "3").returncode == 0
    assert read_info(old_data / "checkpoints" / "three").pool_policy["k"] == 3
    answer = bring("stated", "--pool-ids", ids)
    assert answer.returncode == 0, answer.stderr
    policy = read_info(old_data / "checkpoints" / "stated").pool_policy
    assert policy == {"sampler": "from_pointers", "candidate_split": "train", "exclude": ["query"], "ids": [0, 1, 4]}


def test_convert_stamps_the_dataset_and_drops_what_is_invalid_when_told_to(tmp_path: Path, old_data: Path) -> None:
    source, target = tmp_path / "rl.json", tmp_path / "rl.ndjson"
    rows = [{"pointer": [1, 2], "vqa_correct": 1}, {"pointer": [0, 2]}, {"pointer": [9]}, {"pointer": [8]}]
    source.write_text(json.dumps({"0": {"query": {"question_id": 500}, "pointer_candidates": rows}}))
    refused = leverplus("rl", "convert", source, target, "--dataset", "old", data=old_data)
    assert_one_line_error(refused, "its own demonstration")
    answer = leverplus("rl", "convert", source, target, "--dataset", "old", "--drop-invalid", data=old_data)
    assert answer.returncode == 0, answer.stderr
    assert "dropped: 0 queries, 3 candidates" in answer.stdout
    assert "2 × field" in answer.stdout
    found = read(target)
    dataset = Dataset.open(old_data / "datasets" / "old")
    assert found.fingerprint == Fingerprint(dataset=dataset.fingerprint())
    assert [candidate.pointer for candidate in found.records[0].candidates] == [(1, 2)]
    assert found.meta["dropped_as_invalid"]["candidates"] == 3


def test_doctor_tells_our_services_from_others(tmp_path: Path, trainer: Listener) -> None:
    free, ours = Ports.free(), Listener({"status": "live", "service": "vqa_scorer"})
    try:
        ports = {"SCORER": ours.port, "TRAINER": trainer.port, "SELECTOR": free.selector}
        answer = leverplus("doctor", data=tmp_path, **{f"LEVERPLUS_{name}_PORT": str(port) for name, port in ports.items()})
    finally:
        ours.close()
    found = " ".join(answer.stdout.replace("│", " ").split())
    assert f"port {ours.port} ok a service of ours answers" in found
    assert f"port {trainer.port} WRONG port {trainer.port} on 127.0.0.1 cannot be used" in found
    assert f"port {free.selector} ok free for the selector" in found


def test_doctor_looks_at_the_services_that_the_environment_and_the_folder_name(tmp_path: Path) -> None:
    scorer, selector = (Listener({"status": "live", "service": name}) for name in ("vqa_scorer", "selector_api"))
    me = {"pid": os.getpid(), "started": start_time(os.getpid())}
    processes = [
        {"name": "vqa_scorer-2", "url": scorer.url, **me},
        {"name": "pointer_trainer.worker", "url": None, **me},
        {"name": "selector_api", "url": "http://127.0.0.1:9", **me},
        {"name": "pointer_trainer", "url": "http://127.0.0.1:9", "pid": os.getpid(), "started": "1"},
    ]
    (tmp_path / "processes.json").write_text(json.dumps(processes))
    urls = {"LEVERPLUS_SCORER_URL": f"{scorer.url}, http://127.0.0.1:9", "LEVERPLUS_TRAINER_URL": selector.url}
    try:
        found = {(each.what, each.state): each.found for each in service_findings(urls, tmp_path)}
    finally:
        scorer.close()
        selector.close()
    assert found["launcher", "ok"] == f"`leverplus up` runs on {tmp_path}"
    assert found["vqa_scorer-2", "ok"] == found["LEVERPLUS_SCORER_URL", "ok"] == f"{scorer.url} is ready"
    assert found["pointer_trainer.worker", "ok"] == f"process {os.getpid()} runs"
    assert found["selector_api", "WRONG"].startswith("selector_api is away: ConnectError at http://127.0.0.1:9; is it running?")
    assert f"its process {os.getpid()} has ended" in found["pointer_trainer", "WRONG"]
    assert found["LEVERPLUS_SCORER_URL", "WRONG"].startswith("vqa_scorer is away: ConnectError at http://127.0.0.1:9")
    told = f"{selector.url} is answered by selector_api, not by pointer_trainer; correct the address"
    assert found["LEVERPLUS_TRAINER_URL", "WRONG"] == told
    assert len(found) == 8


def test_doctor_of_a_folder_that_nothing_runs_on_and_of_one_whose_launcher_was_killed(tmp_path: Path) -> None:
    def found() -> list[tuple[str, str]]:
        return [(each.state, each.found) for each in service_findings({}, tmp_path)]

    assert found() == [("ok", f"`leverplus up` does not run on {tmp_path}")]
    path = tmp_path / "processes.json"
    path.write_text(json.dumps([{"name": "selector_api", "pid": os.getpid(), "started": "1", "url": "http://127.0.0.1:9"}]))
    assert found() == [("note", f"{path} is of a launcher that was killed; the next `leverplus up` does away with it")]
    path.write_text("[1]")
    [(state, told)] = found()
    assert state == "WRONG"
    assert f"{path}: not readable" in told


def test_services_are_asked_with_the_key(tmp_path: Path) -> None:
    trainer = Listener({"jobs": []})
    try:
        url = {"LEVERPLUS_TRAINER_URL": trainer.url}
        for options, variables in (([], {"LEVERPLUS_KEY": "mine"}), (["--key", "told"], {}), ([], {"LEVERPLUS_KEY": ""})):
            answer = leverplus(*options, "jobs", "list", data=tmp_path, **url, **variables)
            assert answer.returncode == 0, answer.stderr
    finally:
        trainer.close()
    assert trainer.authorizations == ["Bearer mine", "Bearer told", None]


def test_a_roll_back_says_what_was_served_and_what_is_now(tmp_path: Path) -> None:
    trainer = Listener({"checkpoint_id": "ckpt-a", "predecessor": {"checkpoint_id": "ckpt-b"}})
    try:
        answer = leverplus("rollback", "--by", "ada", data=tmp_path, LEVERPLUS_TRAINER_URL=trainer.url)
        assert answer.stdout == "production served ckpt-b, and serves ckpt-a again\n", answer.stderr
        as_json = leverplus("rollback", "staging", "--json", data=tmp_path, LEVERPLUS_TRAINER_URL=trainer.url)
        assert json.loads(as_json.stdout)["checkpoint_id"] == "ckpt-a"
    finally:
        trainer.close()
    assert trainer.paths == ["/deployments/production/rollback", "/deployments/staging/rollback"]
    assert trainer.bodies[0] == {"by": "ada"}


def test_select_sends_what_is_excluded_and_the_prefilter(tmp_path: Path) -> None:
    selector = Listener({"pointer": [4]})
    asked = ("select", "--query-id", "7")
    try:
        url = {"LEVERPLUS_SELECTOR_URL": selector.url}
        answer = leverplus(*asked, "--exclude", "1, 2", "--exclude", "3", "--prefilter", "nearest", data=tmp_path, **url)
        assert json.loads(answer.stdout) == {"pointer": [4]}
        assert_one_line_error(leverplus(*asked, "--exclude", "1;2", data=tmp_path, **url), "--exclude '1;2': write ItemIds")
        assert leverplus(*asked, data=tmp_path, **url).returncode == 0
    finally:
        selector.close()
    assert selector.paths == ["/select?query_id=7&prefilter=nearest&exclude=1%2C2%2C3", "/select?query_id=7"]


def test_disk_prints_what_the_trainer_says(tmp_path: Path) -> None:
    kinds = [
        {"kind": "datasets", "files": 3, "bytes": 3 * 2**20, "retention_bytes": 0},
        {"kind": "checkpoints", "files": 2, "bytes": 2048, "retention_bytes": 1024},
    ]
    said = Listener({"kinds": kinds, "retention_days": 30.0, "total_bytes": 2**40, "free_bytes": 2**30})
    try:
        answer = leverplus("disk", data=tmp_path, LEVERPLUS_TRAINER_URL=said.url)
    finally:
        said.close()
    shown = " ".join(answer.stdout.replace("│", " ").replace("┃", " ").split())
    assert "what files size 30 days would free" in shown
    assert "datasets 3 3.0 MiB checkpoints 2 2.0 KiB 1.0 KiB all 5 3.0 MiB 1.0 KiB" in shown
    assert "1.0 GiB of 1024.0 GiB free" in shown
