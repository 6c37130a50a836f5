"""`leverplus score` against a running scorer, and what the scorer says a request would take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from leverplus import errors
from leverplus.client import ScorerClient
from leverplus.scoring import ScoreOptions, ScoreQuery, ScoreRequest
from vqa_scorer.app import create_app
from vqa_scorer.engines.echo import EchoEngine
from vqa_scorer.settings import ScorerSettings

Serving = Callable[[FastAPI], AbstractContextManager[ScorerClient]]

QUERIES = [{"query_id": 0, "pointers": [[], [1], [2, 1]]}, {"query_id": 3, "pointers": [[1], [1]]}]


def score(client: ScorerClient, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LEVERPLUS_")}
    return subprocess.run(
        [sys.executable, "-c", "from leverplus.cli import app; app()", "score", "toy", *map(str, arguments)],
        env={**environment, "NO_COLOR": "1", "LEVERPLUS_SCORER_URL": client.base_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(params=["list", "lines", "request"])
def query_file(request: Any, tmp_path: Path) -> Path:
    path = tmp_path / "pointers.json"
    forms = {
        "list": json.dumps(QUERIES, indent=1),
        "lines": "\n".join(map(json.dumps, QUERIES)) + "\n",
        "request": json.dumps({"dataset": "another", "queries": QUERIES}),
    }
    path.write_text(forms[request.param])
    return path


def test_a_file_is_scored_into_lines(settings: ScorerSettings, serving: Serving, query_file: Path, tmp_path: Path) -> None:
    with serving(create_app(settings, EchoEngine(zero_shot="red"))) as client:
        answer = score(client, "--from", query_file)
        written = score(client, "--from", query_file, "--out", tmp_path / "scores.ndjson")
    assert answer.returncode == written.returncode == 0, answer.stderr + written.stderr
    start, first, second, end = map(json.loads, answer.stdout.splitlines())
    assert set(start["fingerprint"]) == {"dataset", "generation", "metric"}
    assert [candidate["pointer"] for candidate in first["candidates"]] == [[], [1], [2, 1]]
    assert (second["query_id"], len(second["candidates"])) == (3, 2)
    assert end["stats"]["fallback"] == 2
    assert "5 pointers: file 3 (60.0%), fallback 2 (40.0%), error 0 (0.0%), cached 0 (0.0%)" in answer.stderr
    assert "warning: 2 of 5 candidates (40.0%) were scored by the fallback" in answer.stderr
    assert written.stdout == ""
    assert (tmp_path / "scores.ndjson").read_text().splitlines()[1:3] == answer.stdout.splitlines()[1:3]


def test_a_dry_run_counts_and_knows_no_time_before_the_first_measurement(settings: ScorerSettings, serving: Serving) -> None:
    asked = ["--query-id", "0", "--query-id", "2", "--pointer", "1", "--pointer", "3,1"]
    with serving(create_app(settings, EchoEngine(delay_s=0.01))) as client:
        before = score(client, *asked, "--dry-run")
        assert client.stats()["totals"]["generated"] == 0
        assert score(client, "--query-id", "0", "--pointer", "1").returncode == 0
        after = score(client, *asked, "--dry-run", "--json")
    assert before.returncode == after.returncode == 0, before.stderr + after.stderr
    assert before.stdout.count("unknown: this scorer has measured no rate yet") == 2
    plan = json.loads(after.stdout)
    counts = {name: plan[name] for name in ("queries", "pointers", "committed", "to_score", "images", "images_to_score")}
    assert counts == {"queries": 2, "pointers": 4, "committed": 1, "to_score": 3, "images": 4, "images_to_score": 4}
    assert plan["estimated_s"] == pytest.approx(3 / plan["pointers_per_engine_s"])


def test_several_queries_and_a_warning_in_a_table(settings: ScorerSettings, serving: Serving) -> None:
    with serving(create_app(settings, EchoEngine())) as client:
        answer = score(client, "--query-id", "0", "--query-id", "3", "--pointer", "1")
        strict = score(client, "--query-id", "3", "--pointer", "1", "--strict")
    assert "query 0 of toy" in answer.stdout
    assert "query 3 of toy" in answer.stdout
    assert "warning: 1 of 2 candidates (50.0%)" in answer.stderr
    assert strict.returncode == 2
    assert "strict scoring needs 10" in strict.stderr


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "not JSON"),
        ("[]", "holds no query"),
        ('{"a": 1}', "expected a list"),
        ('{"query_id": 0, "pointers": [[1]]}\n{"query_id": 1}\n', "line 2: pointers: Field required"),
        ('[{"query_id": 0, "pointers": [[1, 2, 3, 4, 5]]}]', "entry 0: pointers.0: List should have at most 4 items"),
    ],
)
def test_a_broken_file_is_one_line_and_nothing_is_scored(
    settings: ScorerSettings, serving: Serving, tmp_path: Path, content: str, named: str
) -> None:
    (tmp_path / "broken.json").write_text(content)
    with serving(create_app(settings, EchoEngine())) as client:
        answer = score(client, "--from", tmp_path / "broken.json")
        assert client.stats()["totals"]["requests"] == 0
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: ")
    assert answer.stderr.count("\n") == 1
    assert named in answer.stderr


def test_what_does_not_go_together_is_told(settings: ScorerSettings, serving: Serving, tmp_path: Path) -> None:
    with serving(create_app(settings, EchoEngine())) as client:
        for arguments, named in (
            ((), "by --query-id and pointers by --pointer"),
            (("--from", tmp_path / "none"), "no file"),
            (("--from", tmp_path, "--query-id", "1"), "leave them out"),
            (("--query-id", "1", "--pointer", "2", "--out", "x"), "--out goes with --from"),
            (("--query-id", "1", "--pointer", "2", "--postprocessing", "last-word"), "postprocessing"),
        ):
            answer = score(client, *arguments)
            assert answer.returncode == 2
            assert named in answer.stderr


def test_another_postprocessing_reads_stored_texts_without_a_call(settings: ScorerSettings, serving: Serving) -> None:
    query = ScoreQuery(query_id=0, pointers=[[]])

    def answer(client: ScorerClient, postprocessing: Any) -> tuple[str, float | None, int]:
        asked = ScoreRequest(dataset="toy", queries=[query], options=ScoreOptions(postprocessing=postprocessing))
        found = client.score(asked)
        assert found.fingerprint["metric"]["postprocessing"] == {"name": postprocessing, "version": 1}
        [candidate] = found.results[0].candidates
        return candidate.vqa_pred_answer, candidate.vqa_acc_score, found.stats.cached

    with serving(create_app(settings, EchoEngine(zero_shot="red, of course\nand blue"))) as client:
        assert answer(client, "short-answer") == ("red", 1.0, 0)
        assert answer(client, "first-line") == ("red, of course", 0.0, 1)
        assert answer(client, "none") == ("red, of course\nand blue", 0.0, 1)
        assert client.stats()["totals"]["generated"] == 1


def test_a_plan_checks_what_scoring_would(settings: ScorerSettings, serving: Serving) -> None:
    with serving(create_app(settings, EchoEngine(has_probabilities=False))) as client:
        for query, options, kind in (
            (ScoreQuery(query_id=0, pointers=[[0]]), ScoreOptions(), errors.InvalidPointer),
            (ScoreQuery(query_id=99, pointers=[[0]]), ScoreOptions(), errors.NotFound),
            (ScoreQuery(query_id=0, pointers=[[1]]), ScoreOptions(gt_prob=True), errors.InvalidInput),
        ):
            with pytest.raises(kind):
                client.score_plan(ScoreRequest(dataset="toy", queries=[query], options=options))
