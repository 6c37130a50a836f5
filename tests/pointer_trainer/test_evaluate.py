"""Evaluations against a real scorer with an engine that echoes the last demonstration: rows, seeds, parts, reports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from leverplus.data_root import DataRoot
from leverplus.embeddings import Embeddings
from leverplus.errors import InvalidConfig, InvalidInput, NotFound
from pointer_trainer.app import create_app
from pointer_trainer.jobs.evaluate import evaluate
from pointer_trainer.openings import list_openings, opened_note, read_openings
from pointer_trainer.per_query import read_per_query
from pointer_trainer.requests import EvaluateRequest
from pointer_trainer.settings import TrainerSettings
from pointer_trainer.systems import available, fixed_pointers, system_names

POOL = {"sampler": "random", "k": 6}
SIX = {"zero-shot", "random", "best-fixed", "similar-image", "similar-text", "similar-joint"}


def evaluation(**fields: Any) -> dict[str, Any]:
    body = {"dataset": "toy", "pool": POOL, "shots": [0, 1, 2], "bootstrap_draws": 100, **fields}
    return EvaluateRequest.model_validate(body).model_dump(mode="json")


def test_all_systems_on_the_same_queries(run: Any, scorer: Any, data: DataRoot, save_selector: Any) -> None:
    run.scorer_url = scorer.url
    save_selector("ckpt-1")
    save_selector("ckpt-2")
    result = evaluate(run.context(evaluation(checkpoints=["ckpt-1", "ckpt-2"], draws=4)))
    rows = {(row["system"], row["shots"]): row["mean"] for row in result["rows"]}
    # One of the four val items is red, the engine's answer without demonstrations; item 0, the fixed one, is red too.
    assert rows["zero-shot", 0] == rows["best-fixed", 1] == 0.25
    everywhere = {"random", "similar-image", "similar-text", "similar-joint", "v3 ckpt-1", "v3 ckpt-2"}
    there = {(system, shots) for system in everywhere for shots in (1, 2)}
    assert set(rows) == {("zero-shot", 0), ("best-fixed", 1), *there}
    reason = "no checkpoint here ranks fixed pointers of that length"
    assert result["unavailable"] == [{"system": "best-fixed", "shots": 2, "reason": reason}]
    assert (result["queries"], result["queries_left_out"], result["comparisons"]) == (4, 0, len(result["differences"]))
    # Each checkpoint against every baseline there is, and the second against the first.
    assert {row["system"] for row in result["differences"]} == {"v3 ckpt-1", "v3 ckpt-2"}
    of_second = [row["baseline"] for row in result["differences"] if (row["system"], row["shots"]) == ("v3 ckpt-2", 1)]
    assert sorted(of_second) == sorted([*SIX, "v3 ckpt-1"])
    assert all(0 < row["p"] <= row["p_holm"] <= 1 for row in result["differences"])


def test_reports_and_rows_are_kept(run: Any, scorer: Any, data: DataRoot, save_selector: Any) -> None:
    run.scorer_url = scorer.url
    save_selector("ckpt-1")
    result = evaluate(run.context(evaluation(checkpoints=["ckpt-1"], sizes=[2, 3, 100])))
    folder: Path = data.run("job-1")
    assert orjson.loads((folder / "evaluation.json").read_bytes())["rows"] == list(result["rows"])
    assert [part["queries"] for part in result["sizes"]] == [2, 3, 4]
    markdown = (folder / "evaluation.md").read_text()
    assert "95 % intervals, 4 queries of toy, split val" in markdown
    assert "| zero-shot | 25.0 [" in markdown
    assert "| system | shots | 2 queries | 3 queries | 4 queries |" in markdown
    assert "Not evaluated: best-fixed at 2 shots" in markdown
    assert "Its test split has not been opened." in markdown
    page = (folder / "evaluation.html").read_text()
    assert page.count("<svg") == 3
    assert "src=" not in page
    assert "<script" not in page
    table = pq.read_table(folder / "per_query.parquet")
    random = table.filter((table["system"].to_numpy() == "random") & (table["shots"].to_numpy() == 1))  # pyright: ignore
    assert random["draw"].to_pylist() == [0, 1, 2, 3, 4] * 4
    assert np.mean(random["accuracy"].to_numpy()) == pytest.approx(
        next(row["mean"] for row in result["rows"] if (row["system"], row["shots"]) == ("random", 1))
    )
    assert all(len(pointer) == 1 for pointer in random["pointer"].to_pylist())
    read = read_per_query(folder, result["per_query_sha256"])
    assert list(read.query_ids) == [12, 13, 14, 15]
    assert list(read.image_ids) == ["i12", "i13", "i14", "i15"]
    assert read.baselines["zero-shot"][0].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert set(read.checkpoints["ckpt-1"]) == {1, 2}
    with pytest.raises(InvalidInput, match="evaluate again"):
        read_per_query(folder, "0" * 64)
    with pytest.raises(NotFound, match="run directory was deleted"):
        read_per_query(data.run("job-2"), result["per_query_sha256"])


def test_parts_are_nested_and_the_same_for_every_number_of_queries(run: Any, scorer: Any, data: DataRoot) -> None:
    run.scorer_url = scorer.url
    found = evaluate(run.context(evaluation(sizes=[2], baselines=["zero-shot"], shots=[0])))
    alone = evaluate(run.context(evaluation(queries=2, baselines=["zero-shot"], shots=[0]), job_id="job-2"))
    assert found["sizes"][0]["rows"] == alone["rows"]
    assert [part["queries"] for part in alone["sizes"]] == [2]


def test_checkpoints_that_differ_in_their_seed_are_one_system(run: Any, scorer: Any, data: DataRoot, save_selector: Any) -> None:
    run.scorer_url = scorer.url
    for seed in range(2):
        save_selector(f"ckpt-{seed}", training={"seed": seed, "rce_lr": 1e-3})
    save_selector("ckpt-other", training={"seed": 0, "rce_lr": 1e-4})
    result = evaluate(run.context(evaluation(checkpoints=["ckpt-0", "ckpt-other", "ckpt-1"])))
    assert result["checkpoints"] == {"v3 ckpt-0 (2 seeds)": ["ckpt-0", "ckpt-1"], "v3 ckpt-other": ["ckpt-other"]}
    seeds = {row["system"]: row["seeds"] for row in result["rows"]}
    assert (seeds["v3 ckpt-0 (2 seeds)"], seeds["v3 ckpt-other"], seeds["random"]) == (2, 1, 1)
    rows = read_per_query(data.run("job-1"), result["per_query_sha256"])
    assert set(rows.checkpoints) == {"ckpt-0", "ckpt-1", "ckpt-other"}
    mean = np.mean([rows.checkpoints[name][1].mean() for name in ("ckpt-0", "ckpt-1")])
    assert next(row["mean"] for row in result["rows"] if row["system"] == "v3 ckpt-0 (2 seeds)") == pytest.approx(mean)
    alone = [save_selector(f"alone-{seed}", training={"seed": seed}) for seed in range(2)]
    assert system_names(alone) == ["v3 (2 seeds)"] * 2


def test_a_fixed_pointer_that_shows_the_querys_image_is_passed_over(
    run: Any, scorer: Any, data: DataRoot, save_selector: Any
) -> None:
    run.scorer_url = scorer.url
    save_selector("ckpt-1")
    result = evaluate(run.context(evaluation(checkpoints=["ckpt-1"], split="train", shots=[1], draws=1)))
    table = pq.read_table(data.run("job-1") / "per_query.parquet").to_pylist()
    fixed = {row["query_id"]: row["pointer"] for row in table if row["system"] == "best-fixed"}
    assert fixed[0] == [1]
    assert {tuple(pointer) for query, pointer in fixed.items() if query} == {(0,)}
    assert {"system": "zero-shot", "shots": None, "reason": "0 is not among the numbers of shots"} in result["unavailable"]


def test_baselines_that_cannot_be_are_named(data: DataRoot) -> None:
    embeddings = Embeddings.open(data.embeddings("toy"))
    whole = replace(embeddings.manifest, blocks=(replace(embeddings.manifest.blocks[0], name="joint", stop=8),))
    joint = Embeddings(embeddings.query, embeddings.candidate, whole)
    names, missing = available(["random", "similar-image", "similar-joint", "best-fixed"], [0, 1, 2], fixed_pointers([]), joint)
    assert names == ["random", "similar-joint"]
    assert [(one.system, one.shots) for one in missing] == [("similar-image", None), ("best-fixed", None)]
    assert "no block 'image', only joint" in missing[0].reason
    names, missing = available(["random", "zero-shot"], [0], {}, joint)
    assert (names, [one.system for one in missing]) == (["zero-shot"], ["random"])


def test_opening_test_is_recorded_once_a_job_and_told_afterwards(run: Any, scorer: Any, data_with_test: DataRoot) -> None:
    data = data_with_test
    run.data = data
    scorer.stop()
    scorer.start(data, int(scorer.url.rpartition(":")[2]))
    scorer.wait_until_ready()
    run.scorer_url = scorer.url
    final = evaluation(split="test", final={"by": "me"}, baselines=["zero-shot", "random"])
    first = evaluate(run.context(final))
    assert [(one["by"], one["queries"], one["checkpoints"]) for one in first["test_openings"]] == [("me", 4, [])]
    assert "Its test split has been opened once, last by me on" in first["markdown"]
    # Another run of the same job, whose worker died, is the same opening.
    assert len(evaluate(run.context(final))["test_openings"]) == 1
    assert len(evaluate(run.context(final, job_id="job-2"))["test_openings"]) == 2
    on_val = evaluate(run.context(evaluation(baselines=["zero-shot"], shots=[0]), job_id="job-3"))
    assert len(on_val["test_openings"]) == 2
    assert "opened 2 times" in (data.run("job-3") / "evaluation.html").read_text()
    with data.openings("toy").open("ab") as stream:
        stream.write(b'\n{"job_id": "cut sho')
    assert len(read_openings(data, "toy")) == 2
    assert list(list_openings(data)) == ["toy"]
    assert opened_note([]) == "Its test split has not been opened."
    # A name is any text, and the note one line of a report in which a line that begins with a bar is a table's.
    several_lines = read_openings(data, "toy")[-1].model_copy(update={"by": "me\n| v9 | 99.9 |\n"})
    assert f"opened once, last by me | v9 | 99.9 | on {several_lines.at[:16]} UTC" in opened_note([several_lines])


def test_checkpoints_are_listed_with_the_openings(run: Any, data_with_test: DataRoot, settings: TrainerSettings) -> None:
    from pointer_trainer.openings import record_opening

    data = data_with_test
    asked = {"job_id": "job-1", "by": "me", "split": "test", "queries": 4, "checkpoints": ["ckpt-1"]}
    record_opening(data, "toy", **asked, dataset_sha256="0")
    with TestClient(create_app(settings.model_copy(update={"data": data.path}))) as api:
        listed = api.get("/checkpoints").json()["test_openings"]
    assert [(one["by"], one["checkpoints"]) for one in listed["toy"]] == [("me", ["ckpt-1"])]


def test_a_record_of_openings_that_holds_something_else_is_refused_and_a_line_cut_short_is_not(data_with_test: DataRoot) -> None:
    from pointer_trainer.openings import read_openings, record_opening

    data = data_with_test
    asked = {"job_id": "job-1", "by": "me", "split": "test", "queries": 4, "checkpoints": ["ckpt-1"]}
    record_opening(data, "toy", **asked, dataset_sha256="0")
    whole = data.openings("toy").read_bytes()
    data.openings("toy").write_bytes(whole + b'\n{"job_id": "jo')
    assert [opening.job_id for opening in read_openings(data, "toy")] == ["job-1"]
    data.openings("toy").write_bytes(whole + b'\n{"job_id": "job-2"}')
    with pytest.raises(InvalidConfig, match=r"toy\.ndjson, line 2.*at: Field required.*restore the file"):
        read_openings(data, "toy")
