"""RL JSON: dialects, forms, what is refused and how, duplicates, and the report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leverplus.dataset import Dataset, DatasetInfo, Item, write_dataset
from leverplus.errors import (
    Conflict,
    FingerprintMismatch,
    IdOutsidePool,
    InvalidConfig,
    InvalidRlData,
    LeverPlusError,
    NotFound,
)
from leverplus.fingerprint import Fingerprint
from leverplus.ids import ItemId
from leverplus.metric import metric_fingerprint
from leverplus.rewards import RewardConfig, compute_rewards
from leverplus.rl_data import (
    Candidate,
    Dropped,
    Filter,
    QueryRecord,
    RlData,
    filter_records,
    inspect,
    merge_duplicates,
    merge_files,
    read,
    sources,
    stream,
    stream_dropping_invalid,
    write,
)

FINGERPRINT = Fingerprint(metric=metric_fingerprint())


def row(pointer: list[int], **fields: Any) -> dict[str, Any]:
    return {"pointer": pointer, "gen_method": "sample", "vqa_eval_mode": "file", "vqa_correct": 1, "vqa_acc_score": 0.6, **fields}


def entry(*rows: dict[str, Any], pool: list[int] | None = None, **fields: Any) -> dict[str, Any]:
    pools = {} if pool is None else {"candidate_pool_ids": pool}
    return {"query": {"query_id": 7, "question": "what?"}, **pools, "pointer_candidates": list(rows), **fields}


def put(folder: Path, value: Any, name: str = "rl.json") -> Path:
    path = folder / name
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def counting(function: Callable[..., Any], calls: list[object]) -> Callable[..., Any]:
    """The function, which leaves a trace of every call."""

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments)
        return function(*arguments, **named)

    return counted


def read_dropping(path: Path, dataset: Dataset | None = None) -> tuple[RlData, Dropped]:
    found, dropped = stream_dropping_invalid(path, dataset)
    return RlData(found.meta, found.fingerprint, list(found.records)), dropped


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Twelve items: ids 0 to 11."""
    folder = tmp_path / "twelve"
    items = [Item(ItemId(n), "train", None, f"i{n}", f"q{n}", "what?", "x", ("x",)) for n in range(12)]
    write_dataset(folder, DatasetInfo("twelve", "1", "CC0", "human"), items)
    return Dataset.open(folder)


# Dialects


def test_item_ids_in_pointer(tmp_path: Path) -> None:
    data = read(put(tmp_path, {"7": entry(row([30, 10]), row([]), pool=[10, 20, 30]), "_meta": {"by": "someone"}}))
    (record,) = data.records
    assert record.query_id == 7
    assert record.candidate_pool_ids == (10, 20, 30)
    assert record.pool_source == "file"
    assert [candidate.pointer for candidate in record.candidates] == [(30, 10), ()]
    assert record.candidates[0].vqa_acc_score == 0.6
    assert data.meta == {"by": "someone"}
    assert data.fingerprint == Fingerprint()


def test_positions_in_pointer_beside_pointer_global(tmp_path: Path) -> None:
    path = put(tmp_path, {"7": entry(row([2, 0], pointer_global=[30, 10]), pool=[10, 20, 30])})
    assert read(path).records[0].candidates[0].pointer == (30, 10)


def test_pointer_pos_beside_item_ids(tmp_path: Path) -> None:
    path = put(tmp_path, {"7": entry(row([30, 10], pointer_pos=[2, 0]), pool=[10, 20, 30])})
    assert read(path).records[0].candidates[0].pointer == (30, 10)


def test_vqa_eval_reads_as_file_and_a_missing_mode_as_unknown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    silent = row([20])
    del silent["vqa_eval_mode"]
    path = put(tmp_path, {"7": entry(row([10], vqa_eval_mode="vqaEval"), silent, pool=[10, 20])})
    assert [candidate.vqa_eval_mode for candidate in read(path).records[0].candidates] == ["file", "unknown"]
    assert "1 candidates do not say how they were scored" in caplog.text


def test_scores_of_an_error_are_unknown(tmp_path: Path) -> None:
    failed = row([20], vqa_eval_mode=None, eval_failed=True, vqa_correct=0, vqa_acc_score=0.0)
    stated = row([10], vqa_eval_mode="error", vqa_correct=0, vqa_acc_score=0)
    path = put(tmp_path, {"7": entry(stated, failed, pool=[10, 20])})
    for candidate in read(path).records[0].candidates:
        assert (candidate.vqa_eval_mode, candidate.vqa_correct, candidate.vqa_acc_score) == ("error", None, None)
    assert any("2 scores of candidates" in warning for warning in inspect(path)["warnings"])


def test_correctness_as_a_truth_value_or_a_whole_float(tmp_path: Path) -> None:
    rows = [row([n], vqa_correct=value) for n, value in enumerate([True, False, 1.0, 0.0, 1, None], start=1)]
    values = [each.vqa_correct for each in read(put(tmp_path, {"9": entry(*rows, query={})})).records[0].candidates]
    assert values == [1, 0, 1, 0, 1, None]
    assert all(type(value) is int for value in values[:5])


def test_without_pools_all_pointers_ids_are_one_pool(tmp_path: Path) -> None:
    content = {"7": entry(row([30, 10])), "8": {"pointer_candidates": [row([20, 10]), row([1], pointer_global=[5])]}}
    for path in (put(tmp_path, content), put(tmp_path, ndjson(content), "rl.ndjson")):
        records = read(path).records
        assert [record.candidate_pool_ids for record in records] == [(5, 10, 20, 30)] * 2
        assert {record.pool_source for record in records} == {"from_pointers"}


def test_the_label_from_pointers_survives_writing(tmp_path: Path) -> None:
    records = read(put(tmp_path, {"7": entry(row([30, 10]))})).records
    write(tmp_path / "out.json", records, fingerprint=FINGERPRINT, meta={})
    assert read(tmp_path / "out.json").records == records


def ndjson(content: dict[str, Any]) -> str:
    lines = [{"query_id": key, **value} for key, value in content.items()]
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_forms_are_told_apart_by_content(tmp_path: Path) -> None:
    content = {"7": entry(row([10]), pool=[10])}
    forms = {
        "one.json": json.dumps(content),
        "indented.ndjson": json.dumps(content, indent=1),
        "line.json": ndjson(content),
        "lines.json": json.dumps({"_meta": {}}) + "\n" + ndjson(content),
    }
    expected = {"one.json": "json", "indented.ndjson": None, "line.json": "ndjson", "lines.json": "ndjson"}
    for name, text in forms.items():
        path = put(tmp_path, text, name)
        if expected[name] is None:  # an NDJSON name and no JSON in its first line: a torn file rather than another form
            with pytest.raises(InvalidRlData, match="line 1: not JSON"):
                read(path)
        else:
            assert inspect(path)["form"] == expected[name]
            assert read(path).records[0].candidates[0].pointer == (10,)


def test_ndjson_is_streamed(tmp_path: Path) -> None:
    lines = json.dumps({"_meta": {}}) + "\n" + ndjson({"7": entry(row([10]), pool=[10])}) + "torn {"
    records = stream(put(tmp_path, lines, "rl.ndjson")).records
    assert next(records).query_id == 7
    with pytest.raises(InvalidRlData, match="line 3: not JSON"):
        next(records)


LEGACY = {"7": {"id_list": [[30, 10, 7], [20, 7], [7]], "score_list": [-0.5, 0.25, 0.0]}}


@pytest.mark.parametrize(("best", "scores"), [("higher", [-0.5, 0.25, 0.0]), ("lower", [0.5, -0.25, 0.0])])
@pytest.mark.parametrize("name", ["rl.json", "rl.ndjson"])
def test_a_legacy_file_is_read_once_its_best_scores_are_named(tmp_path: Path, best: Any, scores: list[float], name: str) -> None:
    path = put(tmp_path, LEGACY if name == "rl.json" else ndjson(LEGACY), name)
    with pytest.raises(InvalidRlData, match="--info-score"):
        read(path)
    (record,) = read(path, info_score=best).records
    assert [candidate.pointer for candidate in record.candidates] == [(30, 10), (20,), ()]
    assert [candidate.info_score for candidate in record.candidates] == scores
    assert {candidate.vqa_eval_mode for candidate in record.candidates} == {"unknown"}
    assert (record.candidate_pool_ids, record.pool_source) == ((10, 20, 30), "from_pointers")


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"id_list": [[1, 8]], "score_list": [0.1]}, r"id_list\[0\].*last is the query, 7"),
        ({"id_list": [[1, 7]], "score_list": [0.1, 0.2]}, "2 scores for 1"),
        ({"id_list": [[1, 7]], "score_list": ["0.1"]}, r"score_list\[0\].*'0.1'"),
        ({"id_list": 3, "score_list": []}, "id_list.*expected a list"),
    ],
)
def test_a_legacy_entry_that_is_none_is_refused(tmp_path: Path, bad: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRlData, match=named):
        read(put(tmp_path, {"7": bad}), info_score="higher")


# What is refused

BAD_ENTRIES: list[tuple[str, Any, str]] = [
    ("pointer too long", entry(row([1, 2, 3, 4, 5]), pool=[1, 2, 3, 4, 5]), r"pointer_candidates\[0\]\.pointer.*at most 4"),
    ("item twice", entry(row([1, 1]), pool=[1]), r"\.pointer.*named twice"),
    ("the query itself", entry(row([7]), pool=[7]), r"\.pointer.*its own demonstration"),
    ("no list", entry(row("12"), pool=[1]), r"\.pointer.*'12' \(str\), expected a list"),  # pyright: ignore[reportArgumentType]
    ("bool for id", entry(row([True]), pool=[1]), r"\.pointer.*True \(bool\)"),
    ("float for id", entry(row([1.0]), pool=[1]), r"\.pointer.*1\.0 \(float\)"),  # pyright: ignore[reportArgumentType]
    ("negative id", entry(row([-1]), pool=[1]), r"\.pointer.*-1"),
    ("huge id", entry(row([2**40]), pool=[1]), r"\.pointer"),
    ("no pointer", entry({"gen_method": "beam"}, pool=[1]), r"\.pointer.*missing"),
    ("null pointer", entry(row(None), pool=[1]), r"\.pointer.*None"),  # pyright: ignore[reportArgumentType]
    ("row no object", entry([1], pool=[1]), r"pointer_candidates\[0\].*expected an object"),  # pyright: ignore[reportArgumentType]
    ("no candidates", {"candidate_pool_ids": [1]}, "pointer_candidates.*missing"),
    ("candidates no list", {"pointer_candidates": {}}, "pointer_candidates"),
    ("entry no object", [1], "expected an object"),
    ("pool no list", entry(row([1]), pool="1"), "candidate_pool_ids"),  # pyright: ignore[reportArgumentType]
    ("pool with an id twice", entry(row([1]), pool=[1, 2, 1]), "candidate_pool_ids.*item 1 twice"),
    ("pool of texts", entry(row([1]), pool=["1"]), "candidate_pool_ids.*'1'"),  # pyright: ignore[reportArgumentType]
    ("query no object", entry(row([1]), pool=[1], query=[1]), "field query:"),
    ("another query inside", entry(row([1]), pool=[1], query={"query_id": 8}), r"query\.query_id.*8"),
    ("unknown pool source", entry(row([1]), pool=[1], pool_source="dice"), "pool_source"),
    ("correct out of range", entry(row([1], vqa_correct=2), pool=[1]), r"vqa_correct.*2, expected 0 to 1"),
    ("correct a fraction", entry(row([1], vqa_correct=0.5), pool=[1]), r"vqa_correct.*0\.5 \(float\)"),
    ("correct a text", entry(row([1], vqa_correct="1"), pool=[1]), r"vqa_correct.*str"),
    ("score above 1", entry(row([1], vqa_acc_score=1.01), pool=[1]), r"vqa_acc_score.*1\.01.*from 0 to 1"),
    ("score negative", entry(row([1], vqa_acc_score=-0.1), pool=[1]), "vqa_acc_score"),
    ("score a text", entry(row([1], vqa_acc_score="0.6"), pool=[1]), r"vqa_acc_score.*str"),
    (
        "score NaN",
        entry(row([1], vqa_acc_score=math.nan), pool=[1]),
        r"query 7: field pointer_candidates\[0\]\.vqa_acc_score.*nan",
    ),
    ("infinite beam score", entry(row([1], beam_score=-math.inf), pool=[1]), "beam_score.*-inf"),
    ("propensity 0", entry(row([1], propensity=0), pool=[1]), "propensity.*above 0 to 1"),
    ("propensity above 1", entry(row([1], propensity=1.5), pool=[1]), "propensity"),
    ("count 0", entry(row([1], count=0), pool=[1]), "count"),
    ("temperature negative", entry(row([1], temperature=-1.0), pool=[1]), "temperature.*from 0"),
    ("method a number", entry(row([1], gen_method=3), pool=[1]), "gen_method"),
    ("unknown mode", entry(row([1], vqa_eval_mode="guess"), pool=[1]), "vqa_eval_mode.*'guess'"),
    ("mode a list", entry(row([1], vqa_eval_mode=["file"]), pool=[1]), "vqa_eval_mode"),
    ("eval_failed a text", entry(row([1], eval_failed="no"), pool=[1]), "eval_failed"),
    ("other item at position", entry(row([1], pointer_global=[10]), pool=[10, 20]), r"\.pointer.*is item 20.*says item 10"),
    ("position outside", entry(row([2], pointer_global=[10]), pool=[10, 20]), r"position 2 is outside the pool of 2"),
    ("positions too few", entry(row([10, 20], pointer_pos=[0]), pool=[10, 20]), "pointer_pos.*1 positions for 2"),
    ("contradicting rows", entry(row([1]), row([1], vqa_correct=0), pool=[1]), "vqa_correct.*twice with different"),
    ("legacy", {"id_list": [[1, 7]], "score_list": [0.1]}, "legacy InfoScore"),
]


@pytest.mark.parametrize(("bad", "named"), [case[1:] for case in BAD_ENTRIES], ids=[case[0] for case in BAD_ENTRIES])
@pytest.mark.parametrize("form", ["json", "ndjson"])
def test_bad_entries_are_refused_with_file_query_and_field(tmp_path: Path, bad: Any, named: str, form: str) -> None:
    if form == "json":
        path = put(tmp_path, {"7": bad})
    elif isinstance(bad, dict):
        path = put(tmp_path, ndjson({"7": bad}), "rl.ndjson")
    else:
        return
    with pytest.raises(InvalidRlData, match=named) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: query 7: field ")
    assert caught.value.context["query"] == "7"


BAD_FILES: list[tuple[str, str, str]] = [
    ("empty", "", "not JSON"),
    ("torn", '{"7": {"pointer_candidates": [', "not JSON"),
    ("a list", "[]", "expected a JSON object"),
    ("a number", "3", "expected a JSON object"),
    ("no queries", "{}", "holds no queries"),
    ("only meta", '{"_meta": {}}', "holds no queries"),
    ("meta a list", '{"_meta": [], "7": {}}', "_meta is"),
    ("fingerprint a text", '{"_meta": {"fingerprint": "ab"}, "7": {}}', "_meta.fingerprint"),
    ("a later version", '{"_meta": {"format": "leverplus-rl", "version": 2}, "7": {}}', "version is 2"),
    ("id with zeros", '{"07": {"pointer_candidates": []}}', "query 07: field query_id"),
    ("id a word", '{"seven": {"pointer_candidates": []}}', "query seven: field query_id"),
    ("negative id", '{"-1": {"pointer_candidates": []}}', "query -1: field query_id"),
    ("id too large", '{"4294967296": {"pointer_candidates": []}}', "field query_id"),
    ("meta in the middle", '{"query_id": 1, "pointer_candidates": []}\n{"_meta": {}}\n', "line 2"),
    ("no id in a line", '{"_meta": {}}\n{"pointer_candidates": []}\n', "in line 2: field query_id"),
    ("bool id", '{"_meta": {}}\n{"query_id": true, "pointer_candidates": []}\n', "in line 2: field query_id"),
    (
        "NaN in a line",
        '{"_meta": {}}\n{"query_id": 3, "pointer_candidates": [{"pointer": [], "beam_score": NaN}]}\n',
        "query 3.*nan",
    ),
    ("a query twice", '{"query_id": 1, "pointer_candidates": []}\n{"query_id": "1", "pointer_candidates": []}\n', "twice"),
    ("a surrogate", '{"7": {"pointer_candidates": [], "query": {"question": "\\ud800"}}}', "not JSON"),
    ("deep", '{"7": ' + "[" * 5000 + "]" * 5000 + "}", "not JSON"),
]


@pytest.mark.parametrize(("text", "named"), [case[1:] for case in BAD_FILES], ids=[case[0] for case in BAD_FILES])
def test_bad_files_are_refused(tmp_path: Path, text: str, named: str) -> None:
    path = put(tmp_path, text)
    with pytest.raises(InvalidRlData, match=named) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read(tmp_path / "none.json")
    with pytest.raises(InvalidRlData, match="not a file"):
        read(tmp_path)


def test_pools_in_some_queries_only_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRlData, match="query 8: field candidate_pool_ids: is missing"):
        read(put(tmp_path, {"7": entry(row([1]), pool=[1]), "8": {"pointer_candidates": []}}))
    with pytest.raises(InvalidRlData, match="query 8: field candidate_pool_ids: is stated here"):
        read(put(tmp_path, {"7": entry(row([1])), "8": {"pointer_candidates": [], "candidate_pool_ids": [1]}}))


def test_an_id_outside_the_pool_is_a_key_error_with_its_place(tmp_path: Path) -> None:
    path = put(tmp_path, {"7": entry(row([10]), row([10, 11]), pool=[10, 20])})
    with pytest.raises(KeyError) as caught:
        read(path)
    assert isinstance(caught.value, IdOutsidePool)
    expected = "query 7: field pointer_candidates[1].pointer: item 11 is not among the 2 ids of candidate_pool_ids"
    assert str(caught.value) == f"{path}: {expected}"


def test_ids_outside_the_dataset(tmp_path: Path, dataset: Dataset) -> None:
    read(put(tmp_path, {"7": entry(row([11]), pool=[11])}), dataset)
    for bad, named in [
        ({"12": {"pointer_candidates": [], "candidate_pool_ids": [1]}}, "query 12: field query_id: is outside the dataset"),
        ({"7": entry(row([12]), pool=[1, 12])}, "field candidate_pool_ids: item 12 is outside the dataset"),
        ({"7": entry(row([12]))}, "item 12 is outside the dataset"),
    ]:
        with pytest.raises(InvalidRlData, match=named):
            read(put(tmp_path, bad), dataset)


def test_a_query_that_is_another_item_of_the_dataset_is_refused(tmp_path: Path, dataset: Dataset) -> None:
    """The fixture's item n has image i<n> and question q<n>; a file whose ids are shifted by one says otherwise."""
    for fields in ({"question_id": "q7", "image_id": "i7"}, {"question_id": None}, {}):
        read(put(tmp_path, {"7": entry(row([1]), pool=[1], query=fields)}), dataset)
    for fields, named in [
        ({"question_id": "q6", "image_id": "i7"}, r"query\.question_id: is 'q6'.*item 7 of dataset 'twelve' has 'q7'.*shifted"),
        ({"question_id": "q7", "image_id": 6}, r"query\.image_id: is 6.*has 'i7'.*train first"),
    ]:
        path = put(tmp_path, {"7": entry(row([1]), pool=[1], query=fields)})
        with pytest.raises(InvalidRlData, match=named):
            read(path, dataset)
        read(path)


def test_a_question_id_that_two_splits_have_is_that_of_either(tmp_path: Path) -> None:
    """Importers write such an id as <split>:<id>; an old file holds it without the split."""
    folder = tmp_path / "two"
    items = [Item(ItemId(n), split, None, "4", f"{split}:5", "what?", "x", ("x",)) for n, split in enumerate(["train", "val"])]
    write_dataset(folder, DatasetInfo("two", "1", "CC0", "human"), items)
    for stated in (5, "train:5"):
        path = put(tmp_path, {"0": {"query": {"question_id": stated, "image_id": 4}, "pointer_candidates": [row([1])]}})
        assert read(path, Dataset.open(folder)).records[0].query_id == 0


def test_errors_call_a_file_by_the_name_they_are_told(tmp_path: Path, dataset: Dataset) -> None:
    for text in ("[]", '{"7": {}}', '{"query_id": 7}\n{"query_id": 8}\n', json.dumps({"7": entry(row([12]), pool=[12])})):
        with pytest.raises(InvalidRlData) as caught:
            read(put(tmp_path, text), dataset, name="mine.json")
        assert str(caught.value).startswith("mine.json: ")
        assert str(tmp_path) not in f"{caught.value} {caught.value.context}"
    other = Fingerprint(dataset={**dataset.fingerprint(), "version": "2"})
    write(tmp_path / "other.json", [record_of(of(1))], fingerprint=other, meta={})
    with pytest.raises(FingerprintMismatch, match=r"^mine\.json was made"):
        read(tmp_path / "other.json", dataset, name="mine.json")


def test_a_file_of_another_dataset_is_refused(tmp_path: Path, dataset: Dataset) -> None:
    record = QueryRecord(ItemId(7), {}, (ItemId(1),), (Candidate((ItemId(1),), "beam"),))
    own = Fingerprint(dataset=dataset.fingerprint())
    write(tmp_path / "own.ndjson", [record], fingerprint=own, meta={})
    assert read(tmp_path / "own.ndjson", dataset).fingerprint == own
    other = Fingerprint(dataset={**dataset.fingerprint(), "version": "2"})
    write(tmp_path / "other.ndjson", [record], fingerprint=other, meta={})
    with pytest.raises(FingerprintMismatch, match="version: expected '1', found '2'"):
        read(tmp_path / "other.ndjson", dataset)


# Writing


def record_of(*candidates: Candidate, pool: tuple[int, ...] = (1, 2, 3)) -> QueryRecord:
    return QueryRecord(ItemId(7), {"question": "what?"}, tuple(map(ItemId, pool)), candidates)


def of(*ids: int, **fields: Any) -> Candidate:
    return replace(Candidate(tuple(map(ItemId, ids)), "sample"), **fields)


@pytest.mark.parametrize("name", ["out.json", "out.ndjson"])
@pytest.mark.parametrize(
    ("record", "error"),
    [
        (record_of(of(4)), IdOutsidePool),
        (record_of(of(7), pool=(7,)), InvalidRlData),
        (record_of(of(1, 1)), InvalidRlData),
        (record_of(of(1, vqa_acc_score=math.nan)), InvalidRlData),
        (record_of(of(1, vqa_correct=True)), InvalidRlData),
        (record_of(of(1, vqa_eval_mode="error", vqa_acc_score=0.0)), InvalidRlData),
        (record_of(of(1, vqa_eval_mode="vqaEval")), InvalidRlData),
        (record_of(of(1), pool=(1, 1)), InvalidRlData),
        (record_of(of(1, vqa_correct=0), of(1, vqa_correct=1)), InvalidRlData),
        (replace(record_of(of(1)), query={"question": object()}), InvalidRlData),
    ],
)
def test_what_would_not_be_read_is_not_written(tmp_path: Path, name: str, record: QueryRecord, error: type[Exception]) -> None:
    path = tmp_path / name
    good = replace(record_of(of(1)), query_id=ItemId(6))
    with pytest.raises(error) as caught:
        write(path, [good, record], fingerprint=FINGERPRINT, meta={})
    assert f"{path}: query 7: field " in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_writing_nothing_or_a_query_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRlData, match="no queries to write"):
        write(tmp_path / "rl.json", [], fingerprint=FINGERPRINT, meta={})
    with pytest.raises(InvalidRlData, match="comes twice"):
        write(tmp_path / "rl.json", [record_of(of(1)), record_of(of(2))], fingerprint=FINGERPRINT, meta={})
    with pytest.raises(InvalidRlData, match="reserved keys fingerprint"):
        write(tmp_path / "rl.json", [record_of(of(1))], fingerprint=FINGERPRINT, meta={"fingerprint": {}})
    assert list(tmp_path.iterdir()) == []


def test_the_layout_written_is_the_references(tmp_path: Path) -> None:
    write(tmp_path / "rl.json", [record_of(of(2, 1, vqa_acc_score=0.3))], fingerprint=FINGERPRINT, meta={"made": "by hand"})
    content = json.loads((tmp_path / "rl.json").read_text())
    assert list(content) == ["7", "_meta"]
    assert content["7"]["candidate_pool_ids"] == [1, 2, 3]
    (written,) = content["7"]["pointer_candidates"]
    assert (written["pointer"], written["vqa_acc_score"], written["vqa_correct"]) == ([2, 1], 0.3, None)
    assert (written["vqa_eval_mode"], written["count"]) == (None, 1)
    assert content["_meta"] == {
        "made": "by hand",
        "format": "leverplus-rl",
        "version": 1,
        "fingerprint": {"metric": metric_fingerprint()},
    }


# Duplicates


def test_duplicates_are_of_the_ordered_pointer() -> None:
    rows = [of(1, 2), of(2, 1), of(1, 2, gen_method="beam", beam_rank=0), of(1, 2, gen_method="random")]
    first, second = merge_duplicates(rows)
    assert (first.pointer, first.count, first.gen_method, first.beam_rank) == ((1, 2), 3, "beam", 0)
    assert (second.pointer, second.count) == ((2, 1), 1)


def test_merging_fills_in_what_one_row_knows() -> None:
    unscored = of(1, gen_method="beam")
    failed = of(1, vqa_eval_mode="error")
    scored = of(1, vqa_eval_mode="file", vqa_correct=1, vqa_acc_score=0.6)
    (merged,) = merge_duplicates([unscored, failed, scored])
    assert (merged.gen_method, merged.vqa_eval_mode, merged.vqa_correct) == ("beam", "file", 1)
    (merged,) = merge_duplicates([unscored, failed])
    assert (merged.vqa_eval_mode, merged.vqa_correct) == ("error", None)


def test_float_noise_is_no_contradiction() -> None:
    beam, drawn = of(1, gen_method="beam", vqa_gt_prob=0.5000001), of(1, vqa_gt_prob=0.5, vqa_acc_score=0.3)
    (merged,) = merge_duplicates([drawn, beam])
    assert (merged.gen_method, merged.vqa_gt_prob, merged.vqa_acc_score, merged.count) == ("beam", 0.5000001, 0.3, 2)
    with pytest.raises(Conflict, match=r"0\.5 and 0\.5001"):
        merge_duplicates([of(1, vqa_gt_prob=0.5), of(1, vqa_gt_prob=0.5001)])


def test_counts_are_those_of_the_drawn_rows() -> None:
    (merged,) = merge_duplicates([of(1, gen_method="beam"), of(1, propensity=0.25, count=2), of(1, propensity=0.25)])
    assert (merged.gen_method, merged.propensity, merged.count) == ("beam", 0.25, 3)


# Dropping what is invalid


@pytest.mark.parametrize("form", ["json", "ndjson"])
def test_invalid_rows_and_queries_are_dropped_and_counted(tmp_path: Path, dataset: Dataset, form: str) -> None:
    def asked(query: int, *rows: Any, **fields: Any) -> dict[str, Any]:
        return {
            "query": {"question_id": f"q{query}"},
            "candidate_pool_ids": [1, 2, 3, 4],
            "pointer_candidates": list(rows),
            **fields,
        }

    content = {
        "7": asked(
            7,
            row([1]),
            row([7]),
            row([2, 9]),
            row([9]),
            row([3], vqa_correct=2),
            5,
            row([4]),
            row([4], vqa_correct=0),
            row([2, 1]),
        ),
        "8": asked(9, row([1])),
        "9": asked(9, row([9, 1]), row([3, 3])),
        "10": asked(10, row([3])),
        "11": asked(11, row([3]), candidate_pool_ids=None),
    }
    content["_meta"] = {"by": "someone"}
    lines = json.dumps({"_meta": content["_meta"]}) + "\n" + ndjson({key: content[key] for key in content if key != "_meta"})
    path = put(tmp_path, content) if form == "json" else put(tmp_path, lines, "rl.ndjson")
    with pytest.raises(InvalidRlData):
        read(path, dataset)
    data, dropped = read_dropping(path, dataset)
    kept = {record.query_id: [candidate.pointer for candidate in record.candidates] for record in data.records}
    assert kept == {7: [(1,), (2, 1)], 10: [(3,)]}
    assert (dropped.candidates, dropped.queries) == (7 + 2, 3)
    assert data.meta == {"by": "someone", "dropped_as_invalid": dropped.to_json()}
    assert dropped.reasons.total() == 9 + 3
    assert dropped.reasons["field pointer_candidates[N].pointer: item N is not among the N ids of candidate_pool_ids"] == 2
    for part, count in [
        ("own demonstration", 2),
        ("vqa_correct: is N, expected N to N", 1),
        ("expected an object", 1),
        ("twice with different", 2),
        ("query.question_id: is 'q9'", 1),
        ("named twice", 1),
        ("none of them is valid", 1),
        ("candidate_pool_ids: is missing", 1),
    ]:
        assert sum(number for reason, number in dropped.reasons.items() if part in reason) == count, part
    write(tmp_path / "clean.ndjson", data.records, fingerprint=data.fingerprint, meta=data.meta)
    assert read(tmp_path / "clean.ndjson", dataset).records == data.records


def test_dropping_from_a_file_without_pools_makes_the_pool_from_what_is_left(tmp_path: Path, dataset: Dataset) -> None:
    path = put(tmp_path, {"7": entry(row([1, 2]), row([7, 3]), row([50]), query={})})
    data, dropped = read_dropping(path, dataset)
    assert data.records[0].candidate_pool_ids == (1, 2)
    assert data.records[0].pool_source == "from_pointers"
    assert dropped.candidates == 2


@pytest.mark.parametrize("name", ["rl.json", "rl.ndjson"])
def test_rows_with_values_that_json_does_not_have_are_dropped(tmp_path: Path, name: str) -> None:
    content = {"7": entry(row([1], beam_score=math.nan), row([2]), query={}), "8": entry(row([1], beam_score=math.inf), query={})}
    data, dropped = read_dropping(put(tmp_path, json.dumps(content) if name == "rl.json" else ndjson(content), name))
    assert {record.query_id: [candidate.pointer for candidate in record.candidates] for record in data.records} == {7: [(2,)]}
    assert (dropped.candidates, dropped.queries) == (2, 1)


def test_nothing_valid_and_what_is_no_json_are_refused_all_the_same(tmp_path: Path, dataset: Dataset) -> None:
    with pytest.raises(InvalidRlData, match=r"no query is valid.*own demonstration"):
        stream_dropping_invalid(put(tmp_path, {"7": entry(row([7]))}), dataset)
    with pytest.raises(InvalidRlData, match="not JSON"):
        stream_dropping_invalid(put(tmp_path, "{"), dataset)
    with pytest.raises(InvalidRlData, match="legacy InfoScore"):
        stream_dropping_invalid(put(tmp_path, {"7": {"id_list": [[1, 7]], "score_list": [0.1]}}))


def test_dropping_reads_a_query_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {str(query): entry(row([1]), row([query]), query={}) for query in range(20, 40)}
    path = put(tmp_path, ndjson(content), "rl.ndjson")
    found, dropped = stream_dropping_invalid(path)
    assert dropped.candidates == 20
    parsed: list[object] = []
    monkeypatch.setattr(sources, "_parse", counting(sources._parse, parsed))  # pyright: ignore[reportPrivateUsage]
    assert next(iter(found.records)).query_id == 20
    assert len(parsed) == 1


# The report


def test_report(tmp_path: Path) -> None:
    records = [
        record_of(
            of(1, vqa_eval_mode="file", vqa_correct=1, vqa_acc_score=1.0),
            of(1, vqa_eval_mode="file", vqa_correct=1, vqa_acc_score=1.0),
        ),
        replace(record_of(of(), of(1, 2, vqa_eval_mode="error")), query_id=ItemId(8)),
        replace(record_of(of(3, vqa_eval_mode="fallback", vqa_correct=0, vqa_acc_score=0.0), pool=(3, 9)), query_id=ItemId(9)),
    ]
    content = {
        "7": entry(row([1]), row([1]), pool=[1, 2, 3]),
        "8": {"candidate_pool_ids": [1, 2, 3], "pointer_candidates": [{"pointer": []}, row([1, 2], vqa_eval_mode="error")]},
        "9": {
            "candidate_pool_ids": [3, 9],
            "pointer_candidates": [row([3], vqa_eval_mode="fallback", vqa_correct=0, vqa_acc_score=0, colour="red")],
        },
    }
    report = inspect(put(tmp_path, content))
    assert (report["queries"], report["candidates"], report["duplicates"]) == (3, 4, 1)
    assert report["shots"] == {"0": 1, "1": 2, "2": 1}
    assert report["modes"] == {name: {"count": 1, "share": 0.25} for name in ("file", "fallback", "error", "unknown")}
    assert report["correct"] == {"count": 1, "known": 2, "share": 0.5}
    assert (report["queries_all_correct"], report["queries_all_wrong"], report["queries_without_candidates"]) == (1, 1, 0)
    assert report["pool_sizes"] == {"2": 1, "3": 2}
    assert report["pools_with_their_query"] == 1
    assert report["ignored_fields"] == {"pointer_candidates[].colour": 1}
    assert report["fingerprint"] == {}
    assert len(report["warnings"]) == 5
    write(tmp_path / "rl.ndjson", records, fingerprint=FINGERPRINT, meta={})
    written = inspect(tmp_path / "rl.ndjson")
    assert written["form"] == "ndjson"
    assert written["fingerprint"] == FINGERPRINT.digests()
    assert {name: written[name] for name in ("modes", "shots", "pool_sizes")} == {
        name: report[name] for name in ("modes", "shots", "pool_sizes")
    }


def graded(*ids: int, correct: int | None, accuracy: float | None = None, mode: Any = "file") -> Candidate:
    return of(*ids, vqa_correct=correct, vqa_acc_score=correct if accuracy is None else accuracy, vqa_eval_mode=mode)


def two_queries() -> list[QueryRecord]:
    """Query 7: zero-shot wrong; 1 shot right (0.6), wrong, unknown; 2 shots right twice, of one set. Query 8: 1 shot wrong."""
    rows = [
        graded(correct=0),
        graded(1, correct=1, accuracy=0.6),
        graded(2, correct=0),
        graded(3, correct=None, mode="error"),
        graded(1, 2, correct=1),
        graded(2, 1, correct=1, mode="fallback"),
    ]
    wrong = [graded(1, correct=0), graded(2, correct=0, mode="fallback")]
    return [record_of(*rows, pool=(1, 2, 3, 4)), replace(record_of(*wrong, pool=(1, 2, 5, 6)), query_id=ItemId(8))]


def test_report_by_number_of_shots(tmp_path: Path) -> None:
    path = tmp_path / "rl.ndjson"
    write(path, two_queries(), fingerprint=FINGERPRINT, meta={})
    report = inspect(path)
    assert report["positives_per_query"] == {"0": 1, "3": 1}
    assert report["same_set_other_order"] == 1
    assert report["by_shots"]["1"] == {
        "groups": 2,
        "candidates": 5,
        "correct": {"count": 1, "known": 4, "share": 0.25},
        "groups_all_correct": 0,
        "groups_all_wrong": 1,
        "groups_of_equal_rewards": 1,
        "fallback_share": 0.2,
        "unique_rewards": 2,
        "positives_per_group": {"0": 1, "1": 1},
    }
    assert report["by_shots"]["2"]["groups_all_correct"] == 1
    assert report["by_shots"]["2"]["fallback_share"] == 0.5
    # hard_plus_soft: 1 + 0.6, 0, 2, 2, 0, 0; the zero-shot row is left out, the failed one unknown.
    rewards = report["rewards"]
    assert (rewards["known"], rewards["unknown"], rewards["distinct"]) == (6, 1, 3)
    assert rewards["histogram"] == [{"from": value, "to": value, "count": count} for value, count in ((0, 3), (1.6, 1), (2, 2))]
    assert rewards["mean"] == pytest.approx(5.6 / 6)
    # Query 7 tried 3 of 4, query 8 2 of 4; together 1, 2, 3 of 1 to 6.
    assert report["pool_coverage"] == {"mean": 0.625, "min": 0.5, "max": 0.75, "of_all_pools": 0.5}


def test_rewards_that_are_many_are_counted_in_intervals(tmp_path: Path) -> None:
    rows = [graded(n, correct=1, accuracy=n / 100) for n in range(1, 42) if n != 7]
    write(tmp_path / "rl.json", [record_of(*rows, pool=tuple(range(1, 42)))], fingerprint=FINGERPRINT, meta={})
    rewards = inspect(tmp_path / "rl.json")["rewards"]
    assert rewards["distinct"] == 40
    assert len(rewards["histogram"]) == 20
    assert sum(bar["count"] for bar in rewards["histogram"]) == 40
    assert (rewards["histogram"][0]["from"], rewards["histogram"][-1]["to"]) == (rewards["min"], rewards["max"])


# Filtering


def kept(records: list[QueryRecord], **conditions: Any) -> tuple[dict[int, list[tuple[int, ...]]], Dropped]:
    dropped = Dropped()
    found = filter_records(records, Filter(**conditions), dropped)
    return {record.query_id: [tuple(candidate.pointer) for candidate in record.candidates] for record in found}, dropped


def test_groups_without_a_positive_go_with_a_reason() -> None:
    found, dropped = kept(two_queries(), has_positive=True)
    assert found == {7: [(), (1,), (2,), (3,), (1, 2), (2, 1)]}
    assert dropped.to_json() == {"candidates": 2, "queries": 1, "reasons": {"group has no positive": 2}}


def test_no_fallback() -> None:
    found, dropped = kept(two_queries(), no_fallback=True)
    assert found == {7: [(), (1,), (2,), (3,), (1, 2)], 8: [(1,)]}
    assert dropped.to_json() == {"candidates": 2, "queries": 0, "reasons": {"scored by the fallback": 2}}


def test_balanced_is_the_share_of_positives_in_a_group() -> None:
    """1 shot of query 7: one of two known is right; the 2-shot group and query 8 are one-sided."""
    found, dropped = kept(two_queries(), balanced=(0.4, 0.6))
    assert found == {7: [(), (1,), (2,), (3,)]}
    assert dropped.to_json() == {
        "candidates": 4,
        "queries": 1,
        "reasons": {"group has a share of positives outside the bounds": 4},
    }


def test_bounds_are_part_of_the_balance() -> None:
    """Two of five right is 40 %, three of five 60 %, one of five neither."""
    for right, stays in ((2, True), (3, True), (1, False), (4, False)):
        rows = [graded(n, correct=int(n <= right)) for n in range(1, 6)]
        assert bool(kept([record_of(*rows, pool=(1, 2, 3, 4, 5))], balanced=(0.4, 0.6))[0]) is stays


@pytest.mark.parametrize(
    ("right", "wrong", "left"),
    [(2, 8, (2, 3)), (8, 2, (3, 2)), (1, 9, (1, 1)), (1, 1, (1, 1)), (5, 0, None), (0, 5, None), (3, 2, (3, 2))],
)
def test_down_sampling_leaves_out_as_few_as_possible(right: int, wrong: int, left: tuple[int, int] | None) -> None:
    ids = range(11, 11 + right + wrong)
    rows = [graded(n, correct=int(n < 11 + right)) for n in ids]
    records = [record_of(*rows, pool=tuple(ids))]
    conditions = {"balanced": (0.4, 0.6), "down_sample": True}
    found, dropped = kept(records, **conditions, seed=3)
    if left is None:
        assert found == {}
        return
    positives = sum(pointer[0] < 11 + right for pointer in found[7])
    assert (positives, len(found[7]) - positives) == left
    assert dropped.candidates == right + wrong - sum(left)
    again, _ = kept([replace(records[0], candidates=tuple(reversed(rows)))], **conditions, seed=3)
    assert sorted(again[7]) == sorted(found[7])


def test_which_ones_are_left_out_depends_on_the_seed() -> None:
    ids = range(11, 31)
    records = [record_of(*(graded(n, correct=int(n < 13)) for n in ids), pool=tuple(ids))]
    outcomes = {tuple(kept(records, balanced=(0.4, 0.6), down_sample=True, seed=seed)[0][7]) for seed in range(5)}
    assert len(outcomes) > 1


def test_conditions_that_cannot_be_are_refused() -> None:
    for bad in ({"balanced": (0.6, 0.4)}, {"balanced": (-0.1, 0.5)}, {"down_sample": True}):
        with pytest.raises(InvalidConfig):
            Filter(**bad)


# Merging


@pytest.mark.parametrize("names", [("a.json", "b.ndjson"), ("a.ndjson", "b.json")])
def test_merging_keeps_what_all_files_state(tmp_path: Path, names: tuple[str, str]) -> None:
    policy = {"pool_policy": {"sampler": "random", "k": 3}}
    first = [replace(record_of(of(2)), query_id=ItemId(9)), record_of(of(1, vqa_correct=1, vqa_eval_mode="file"))]
    write(tmp_path / names[0], first, fingerprint=FINGERPRINT, meta={**policy, "job": 1})
    write(tmp_path / names[1], [record_of(of(1), of(3))], fingerprint=FINGERPRINT, meta={**policy, "job": 2})
    merged = merge_files([tmp_path / name for name in names])
    assert merged.meta["pool_policy"] == policy["pool_policy"]
    assert "job" not in merged.meta
    assert [each["meta"]["job"] for each in merged.meta["merged_from"]] == [1, 2]
    records = list(merged.records)
    assert [record.query_id for record in records] == [7, 9]
    assert [(candidate.pointer, candidate.vqa_correct) for candidate in records[0].candidates] == [((1,), 1), ((3,), None)]


def test_merging_reads_a_query_when_it_is_its_turn(tmp_path: Path) -> None:
    """The fault in query 8 does not keep query 7 from being read."""
    path = put(tmp_path, {"8": entry(row([9]), pool=[1], query={}), "7": entry(row([1]), pool=[1])})
    records = merge_files([path]).records
    assert next(records).query_id == 7
    with pytest.raises(IdOutsidePool):
        next(records)


# Properties

scores = st.none() | st.floats(0, 1)
finite = st.none() | st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def candidates(draw: st.DrawFn, pool: list[int]) -> Candidate:
    pointer = draw(st.lists(st.sampled_from(pool), max_size=4, unique=True)) if pool else []
    mode = draw(st.sampled_from(["file", "fallback", "error", "unknown"]))
    known: dict[str, Any] = {}
    if mode != "error":
        known = {"vqa_correct": draw(st.none() | st.integers(0, 1)), "vqa_acc_score": draw(scores), "vqa_rel_score": draw(scores)}
    return of(
        *pointer,
        gen_method=draw(st.sampled_from(["beam", "sample", "random", "retrieval", None])),
        beam_score=draw(finite),
        info_score=draw(finite),
        propensity=draw(st.none() | st.floats(0, 1, exclude_min=True)),
        count=draw(st.integers(1, 9)),
        vqa_raw_generation=draw(st.none() | st.text(max_size=5)),
        vqa_eval_mode=mode,
        **known,
    )


@st.composite
def record_lists(draw: st.DrawFn) -> list[QueryRecord]:
    records: list[QueryRecord] = []
    for query_id in draw(st.lists(st.integers(0, 50), min_size=1, max_size=4, unique=True)):
        pool = draw(st.lists(st.integers(0, 2**31 - 1).filter(lambda item, own=query_id: item != own), max_size=6, unique=True))
        rows = draw(st.lists(candidates(pool), max_size=5, unique_by=lambda candidate: candidate.pointer))
        records.append(replace(record_of(*rows, pool=tuple(pool)), query_id=ItemId(query_id)))
    return records


on_files = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(record_lists(), st.sampled_from(["rl.json", "rl.ndjson", "rl.jsonl"]))
@on_files
def test_what_is_written_is_read_back(tmp_path: Path, records: list[QueryRecord], name: str) -> None:
    meta = {"note": "ä"}
    write(tmp_path / name, records, fingerprint=FINGERPRINT, meta=meta)
    data = read(tmp_path / name)
    assert data.records == records
    assert data.fingerprint == FINGERPRINT
    assert data.meta == meta
    assert list(stream(tmp_path / name).records) == records


@given(st.data(), st.lists(st.integers(0, 60), min_size=1, max_size=8, unique=True), st.booleans())
@on_files
def test_an_id_outside_its_pool_is_always_refused(tmp_path: Path, data: st.DataObject, pool: list[int], as_lines: bool) -> None:
    inside = data.draw(st.lists(st.sampled_from(pool), max_size=3, unique=True))
    outside = data.draw(st.integers(0, 100).filter(lambda item: item not in pool))
    pointer = data.draw(st.permutations([*inside, outside]))
    content = {"101": {"candidate_pool_ids": pool, "pointer_candidates": [row(pointer)]}}
    path = put(tmp_path, ndjson(content) if as_lines else content)
    with pytest.raises(IdOutsidePool) as caught:
        read(path)
    assert caught.value.context["item_id"] == outside
    record = replace(record_of(of(*pointer), pool=tuple(pool)), query_id=ItemId(101))
    with pytest.raises(IdOutsidePool):
        write(tmp_path / "out.json", [record], fingerprint=FINGERPRINT, meta={})
    assert not (tmp_path / "out.json").exists()


names = st.sampled_from(
    [
        "7",
        "_meta",
        "query_id",
        "query",
        "candidate_pool_ids",
        "pointer_candidates",
        "pointer",
        "pointer_global",
        "pointer_pos",
        "vqa_correct",
        "vqa_eval_mode",
        "count",
        "id_list",
        "score_list",
        "fingerprint",
        "format",
        "version",
        "pool_source",
    ]
)
leaves = st.none() | st.booleans() | st.integers(-3, 12) | st.floats() | st.sampled_from(["7", "file", "x"])
garbage = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=5), max_leaves=25
)


@given(st.dictionaries(names, garbage, max_size=4) | garbage, st.sampled_from(["rl.json", "rl.ndjson"]), st.booleans())
@settings(on_files, max_examples=300)
def test_garbage_json_raises_nothing_but_our_errors(tmp_path: Path, value: Any, name: str, twice: bool) -> None:
    path = put(tmp_path, "\n".join([json.dumps(value)] * (2 if twice else 1)), name)
    for reader in (read, inspect):
        with suppress(LeverPlusError):
            reader(path)


@given(st.binary(max_size=60))
@on_files
def test_garbage_bytes_raise_nothing_but_our_errors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rl.json"
    path.write_bytes(content)
    with pytest.raises(LeverPlusError):
        read(path)


# Legacy InfoScore files


def test_a_legacy_file_is_read_once_its_sign_is_stated(tmp_path: Path) -> None:
    content = {
        "7": {"id_list": [[3, 7], [5, 1, 7]], "score_list": [0.25, -0.5]},
        "9": {"id_list": [[1, 9]], "score_list": [0]},
        "_meta": {"by": "someone"},
    }
    path = put(tmp_path, content)
    for sign, scores in (("higher", [0.25, -0.5]), ("lower", [-0.25, 0.5])):
        data = read(path, info_score=sign)
        first = data.records[0]
        assert [candidate.pointer for candidate in first.candidates] == [(3,), (5, 1)]
        assert [candidate.info_score for candidate in first.candidates] == scores
        assert {candidate.vqa_eval_mode for candidate in first.candidates} == {"unknown"}
        assert first.candidate_pool_ids == (1, 3, 5)
        assert data.meta == {"by": "someone", "info_score_of_legacy_file": f"{sign} is better"}
    write(tmp_path / "out.json", data.records, fingerprint=FINGERPRINT, meta=data.meta)
    assert read(tmp_path / "out.json").records == data.records
    # Nothing but the InfoScore is known: it is a reward by itself, and by no other mode.
    candidates = data.records[0].candidates
    assert compute_rewards(candidates[:1], RewardConfig(mode="hybrid", alpha=1.0)) == [0.0]
    assert compute_rewards(candidates[:1], RewardConfig()) == [None]


def test_a_sign_for_a_file_that_needs_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRlData, match="this is no legacy file"):
        read(put(tmp_path, {"7": entry(row([10]), pool=[10])}), info_score="lower")
