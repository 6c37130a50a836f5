"""Generation and evaluation against a real scorer application with an engine that echoes the last demonstration."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from fastapi.testclient import TestClient

from leverplus import rl_data
from leverplus.checkpoints import read_info
from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset, write_dataset
from leverplus.embeddings import Embeddings
from leverplus.errors import Cancelled, FingerprintMismatch, InvalidInput, InvalidRlData, NotFound, Unavailable
from leverplus.files import remove_folder
from leverplus.fingerprint import Fingerprint
from leverplus.ids import ItemId
from leverplus.pools import PoolPolicy, Pools
from leverplus.scoring import ScoreStats
from leverplus.selector import selector_from_checkpoint
from pointer_trainer import dry_run
from pointer_trainer.jobs import generate as generate_job
from pointer_trainer.jobs.evaluate import evaluate
from pointer_trainer.jobs.generate import generate
from pointer_trainer.jobs.train import train_selector
from pointer_trainer.pool_policy import pool_policy
from pointer_trainer.replicas import Replicas
from pointer_trainer.requests import EvaluateRequest, GenerateRequest
from pointer_trainer.rl_files import take_in
from pointer_trainer.scored_queries import AskedQuery, ModeCounts, Traffic
from pointer_trainer.scored_queries import Scorer as ScoredQueries
from vqa_scorer.engines.echo import EchoEngine

COLOURS = ["red", "green", "blue", "white"]
POOL = {"sampler": "random", "k": 6}


def request(**fields: Any) -> dict[str, Any]:
    return GenerateRequest.model_validate({"dataset": "toy", "pool": POOL, **fields}).model_dump(mode="json")


def test_every_candidate_is_scored_and_every_number_says_how(run: Any, scorer: Any, data: DataRoot) -> None:
    run.scorer_url = scorer.url
    result = generate(run.context(request(shots=[1, 2], seed=5), job_id="job-7"))
    assert result["rl_data_id"] == "rl-7"
    dataset = Dataset.open(data.dataset("toy"))
    read = rl_data.read(data.rl_data("rl-7"), dataset)
    assert [record.query_id for record in read.records] == list(range(12))
    for record in read.records:
        for candidate in record.candidates:
            last = candidate.pointer[-1] if candidate.pointer else 0
            # The engine repeats the last demonstration's colour, and says red without one.
            is_right = COLOURS[last % 4] == COLOURS[record.query_id % 4]
            assert candidate.vqa_pred_answer == COLOURS[last % 4]
            assert (candidate.vqa_correct, candidate.vqa_acc_score) == (int(is_right), float(is_right))
            assert candidate.vqa_eval_mode == "file"
    pools = Pools(dataset, Embeddings.open(data.embeddings("toy"), dataset), PoolPolicy(sampler="random", k=6))
    assert read.fingerprint.dataset == dataset.fingerprint()
    assert read.fingerprint.generation == scorer.engine.generation_fingerprint()
    assert read.fingerprint.metric is not None
    Fingerprint(pool=pools.fingerprint()).require_same(read.fingerprint, subject="file", parts=("pool",))
    assert read.records[3].candidate_pool_ids == tuple(pools.pool(3))
    assert read.meta["selector"]["source"] == "initialised"
    assert read.meta["selector"]["seed"] == 5
    assert read.meta["logging_mixture"]["weights"] == {"sample@1": 0.4, "sample@1.3": 0.4, "random": 0.2}
    total = sum(len(record.candidates) for record in read.records)
    assert result["report"]["modes"]["file"] == {"count": total, "share": 1.0}
    assert run.reports[-1][:3] == ("write", 1, 1)
    phase, step, count, extra = next(report for report in reversed(run.reports) if report[0] == "score")
    assert (phase, step, count) == ("score", 12, 12)
    shares = {key: extra[key] for key in ("scored", "file", "file_share", "fallback_share", "error_share")}
    assert shares == {"scored": total, "file": total, "file_share": 1.0, "fallback_share": 0.0, "error_share": 0.0}
    assert orjson.loads((data.run("job-7") / "report.json").read_bytes()) == result["report"]


def test_past_a_tenth_of_fallback_the_counts_carry_a_warning() -> None:
    counts = ModeCounts()
    counts.add(ScoreStats.counted(file=9, fallback=1, error=0, cached=0))
    assert counts.warnings == []
    counts.add(ScoreStats.counted(file=0, fallback=2, error=1, cached=0))
    [warning] = counts.warnings
    assert warning.startswith("3 of 13 candidates (23.1%) were scored by the fallback")


def test_a_second_run_keeps_what_the_first_one_made(run: Any, scorer: Any, data: DataRoot) -> None:
    run.scorer_url = scorer.url
    result = generate(run.context(request(), job_id="job-1"))
    first = data.rl_data("rl-1").read_bytes()
    asked = len(scorer.engine.batches)
    # Its worker died before it told that the job is done.
    assert generate(run.context(request(), job_id="job-1")) == result
    assert len(scorer.engine.batches) == asked
    # And without what it made: from committed scores.
    (data.run("job-1") / "result.json").unlink()
    again = generate(run.context(request(), job_id="job-1"))
    assert data.rl_data("rl-1").read_bytes() == first
    assert len(scorer.engine.batches) == asked
    assert again["scores"]["cached"] == again["scores"]["scored"] == result["scores"]["scored"]
    assert not (data.run("job-1") / "shards").exists()


def test_shards_make_the_file_of_one_run_and_are_never_made_again(
    run: Any, scorer: Any, data: DataRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.scorer_url = scorer.url
    only: dict[str, Any] = {"num_beams": 0, "num_samples_per_temp": 0}  # a selector's last bits depend on who shares its batch
    generate(run.context(request(**only), job_id="job-1"))
    whole = data.rl_data("rl-1").read_bytes().split(b"\n")
    run.reports.clear()
    only |= {"shard_queries": 3}
    # A shard is one request, and tells of its beginning and its end.
    run.stop_after = 4
    with pytest.raises(Cancelled):
        generate(run.context(request(**only), job_id="job-2"))
    folder = data.run("job-2") / "shards"
    kept = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert sorted(kept) == ["00001.ndjson", "00002.ndjson"]
    assert not data.rl_data("rl-2").exists()
    run.stop_after = None
    seen: dict[str, int] = {}
    keep = generate_job.remove_folder

    def remember(path: Path) -> None:
        seen.update({file.name: file.stat().st_mtime_ns for file in path.iterdir()} if path.name == "shards" else {})
        keep(path)

    monkeypatch.setattr(generate_job, "remove_folder", remember)
    result = generate(run.context(request(**only), job_id="job-2"))
    assert {name: seen[name] for name in kept} == kept, "a shard that was finished is not written again"
    assert len(seen) == result["shards"] == 4
    lines = data.rl_data("rl-2").read_bytes().split(b"\n")
    assert lines[1:] == whole[1:]
    heads = [orjson.loads(line[0])["_meta"] for line in (whole, lines)]
    assert heads[0].pop("job_id") != heads[1].pop("job_id")
    assert [head["request"].pop("shard_queries") for head in heads] == [500, 3]
    assert heads[0] == heads[1]
    steps = [step for phase, step, total, _ in run.reports if phase == "score" and total == 12]
    assert steps[-1] == 12


def test_a_damaged_shard_is_told(run: Any, scorer: Any, data: DataRoot) -> None:
    run.scorer_url = scorer.url
    folder = data.run("job-1") / "shards"
    folder.mkdir(parents=True)
    (folder / "00002.ndjson").write_bytes(b'{"query_id":3}\n')
    with pytest.raises(InvalidRlData, match=r"00002\.ndjson.*delete the file and resume"):
        generate(run.context(request(shard_queries=3), job_id="job-1"))


def test_shards_of_another_scorer_are_refused_at_the_first_answer(run: Any, scorer: Any, data: DataRoot) -> None:
    run.scorer_url = scorer.url
    run.stop_after = 2
    with pytest.raises(Cancelled):
        generate(run.context(request(shard_queries=3), job_id="job-1"))
    assert [path.name for path in (data.run("job-1") / "shards").iterdir()] == ["00001.ndjson"]
    run.stop_after = None
    port = int(scorer.url.rsplit(":", 1)[1])
    scorer.stop()
    scorer.engine = EchoEngine(zero_shot="another VLM")
    scorer.start(data, port)
    with pytest.raises(FingerprintMismatch, match=r"generation\.arguments\.zero_shot: expected 'red', found 'another VLM'"):
        generate(run.context(request(shard_queries=3), job_id="job-1"))


def test_a_dry_run_counts_and_scores_nothing(run: Any, scorer: Any, data: DataRoot) -> None:
    run.scorer_url = scorer.url
    sources = {"num_beams": 2, "num_retrieval": 3, "num_random": 0, "num_samples_per_temp": 0}
    scorer.wait_until_ready()
    result = generate(run.context(request(dry_run=True, queries=5, shots=[1], **sources)))
    assert result["queries"] == 5
    assert result["gen_methods"]["beam"] == 10
    assert result["gen_methods"]["zero_shot"] == 5
    assert result["pointers"] == sum(result["gen_methods"].values())
    assert scorer.engine.batches == []
    assert not data.rl_data("rl-1").exists()
    # Five queries, each its own image; all of train may be shown.
    assert 5 <= result["images"] <= 12
    assert (result["committed"], result["to_score"]) == (0, result["pointers"])
    assert (result["scorers"], result["pointers_per_s"], result["estimated_hours"]) == (1, None, None)
    assert result["sampled_queries"] is None
    assert "no scorer has measured its rate yet" in result["notes"][0]


def test_a_dry_run_knows_what_is_scored_and_how_long_the_rest_takes(run: Any, scorer: Any) -> None:
    run.scorer_url = scorer.url
    generate(run.context(request(queries=6), job_id="job-1"))
    result = generate(run.context(request(queries=6, dry_run=True), job_id="job-2"))
    assert (result["committed"], result["to_score"], result["estimated_hours"]) == (result["pointers"], 0, 0.0)
    result = generate(run.context(request(dry_run=True), job_id="job-2"))
    assert result["pointers"] == result["committed"] + result["to_score"]
    assert 0 < result["to_score"] < result["pointers"]
    assert result["estimated_hours"] == pytest.approx(result["to_score"] / result["pointers_per_s"] / 3600)


def test_a_dry_run_of_many_queries_says_that_it_counted_a_sample(
    run: Any, scorer: Any, data: DataRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.scorer_url = scorer.url
    only = {"num_beams": 0, "num_samples_per_temp": 0, "num_random": 0, "num_retrieval": 3}
    monkeypatch.setattr(dry_run, "SAMPLE", 4)
    scorer.wait_until_ready()
    result = generate(run.context(request(dry_run=True, shots=[1], **only)))
    assert (result["queries"], result["sampled_queries"]) == (12, 4)
    assert result["gen_methods"] == {"retrieval": 36, "zero_shot": 12}
    assert result["images"] == 12
    assert "counted on 4 of 12 queries" in result["notes"][0]
    assert not data.rl_data("rl-1").exists()


def test_a_dry_run_needs_no_scorer(run: Any) -> None:
    run.scorer_url = "http://127.0.0.1:9"
    result = generate(run.context(request(dry_run=True, shots=[1])))
    assert result["pointers"] > 12
    assert (result["committed"], result["to_score"], result["estimated_hours"]) == (None, None, None)
    assert "do not say what is scored already" in result["notes"][0]


def test_queries_without_a_candidate_are_counted_and_left_out(run: Any, scorer: Any, data: DataRoot) -> None:
    run.scorer_url = scorer.url
    only = {"num_beams": 0, "num_samples_per_temp": 0, "num_random": 0, "num_retrieval": 0, "zero_shot": False}
    result = generate(run.context(request(shots=[1], num_answer=1, pool={"k": 1}, **only), job_id="job-1"))
    records = rl_data.read(data.rl_data("rl-1")).records
    assert 0 < len(records) < 12
    assert all(record.candidates for record in records)
    assert result["queries_without_candidates"] == 12 - len(records)
    assert run.reports[-1][1] <= 12
    with pytest.raises(InvalidInput, match=r"none of the 12 queries has a candidate from num_answer 1"):
        generate(run.context(request(shots=[4], num_answer=1, pool={"k": 4}, **only), job_id="job-2"))
    assert not data.rl_data("rl-2").exists()


def test_cancelling_leaves_no_file(run: Any, scorer: Any, data: DataRoot) -> None:
    run.scorer_url = scorer.url
    run.stop_after = 2
    with pytest.raises(Cancelled):
        generate(run.context(request()))
    assert list((data.path / "rl-data").glob("*")) == []


def test_cancelling_does_not_wait_for_a_scorer_that_hangs(run: Any, scorer: Any) -> None:
    run.scorer_url = scorer.url
    gate = threading.Event()
    scorer.engine.gate = gate
    context = run.context(request())
    timer = threading.Timer(0.3, lambda: setattr(run, "stop_after", 0))
    timer.start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        generate(context)
    assert time.monotonic() - started < 2
    gate.set()


def asked(count: int) -> list[AskedQuery]:
    return [AskedQuery(query, ((), (ItemId(query + 1),))) for query in range(count)]


def test_results_come_in_order_with_few_requests_in_flight(scorer: Any) -> None:
    traffic = Traffic(pointers_a_request=4, in_flight=2)
    taken: list[int] = []

    def queries() -> Any:
        for query in asked(10):
            taken.append(query.query_id)
            yield query

    with Replicas([scorer.url]) as replicas:
        stream = ScoredQueries(replicas, "toy", flavour="official", check=lambda: None, traffic=traffic)
        batches = stream.score(queries())
        first = next(batches)
        # Two requests of two queries each, and the query that did not fit.
        assert len(taken) <= 5
        rest = list(batches)
    answered = [query.query_id for batch in (first, *rest) for query, _ in batch.queries]
    assert answered == list(range(10))
    assert all(len(batch.queries) == 2 for batch in (first, *rest))


@pytest.mark.parametrize("largest", [16, 200])
def test_a_query_with_more_pointers_than_a_request_or_the_queue_holds_is_cut(scorer: Any, largest: int) -> None:
    pointers = tuple((ItemId(one), ItemId(two)) for one in range(11) for two in range(11) if one != two)
    queries = [AskedQuery(11, pointers), AskedQuery(12, ((),))]
    with Replicas([scorer.url]) as replicas:
        # The queue of this scorer holds 64.
        traffic = Traffic(largest, 1)
        stream = ScoredQueries(replicas, "toy", flavour="official", check=lambda: None, traffic=traffic)
        batches = list(stream.score(queries))
    rows = [row for batch in batches for row in batch.queries]
    assert [query for query, _ in rows] == queries
    assert [candidate.pointer for candidate in rows[0][1]] == [list(pointer) for pointer in pointers]
    counts = [batch.stats for batch in batches]
    assert sum(stats.file for stats in counts) == len(pointers) + 1


def test_a_scorer_that_comes_back_is_waited_for(data: DataRoot, scorer: Any) -> None:
    port = int(scorer.url.rsplit(":", 1)[1])
    scorer.stop()
    timer = threading.Timer(0.3, lambda: scorer.start(data, port))
    timer.start()
    traffic = Traffic(first_wait_s=0.05, longest_wait_s=0.2, patience_s=20)
    with Replicas([scorer.url]) as replicas:
        stream = ScoredQueries(replicas, "toy", flavour="official", check=lambda: None, traffic=traffic)
        assert [query.query_id for batch in stream.score(asked(3)) for query, _ in batch.queries] == [0, 1, 2]
    timer.join()


def test_a_scorer_that_stays_away_is_unavailable(run: Any) -> None:
    traffic = Traffic(first_wait_s=0.01, longest_wait_s=0.01, patience_s=0.03)
    with Replicas(["http://127.0.0.1:9"]) as replicas:
        stream = ScoredQueries(replicas, "toy", flavour="official", check=lambda: None, traffic=traffic)
        with pytest.raises(Unavailable, match="vqa_scorer is away"):
            list(stream.score(asked(1)))


def test_a_scorer_that_changes_under_way_is_refused(scorer: Any) -> None:
    with Replicas([scorer.url]) as replicas:
        stream = ScoredQueries(replicas, "toy", flavour="official", check=lambda: None, traffic=Traffic(2, 1))
        batches = stream.score(asked(4))
        next(batches)
        stream.fingerprint = Fingerprint(generation={"vlm": "another"})
        with pytest.raises(FingerprintMismatch, match="the scorer's newest answer"):
            list(batches)


def test_an_unknown_item_ends_the_job_with_the_scorers_words(scorer: Any) -> None:
    with Replicas([scorer.url]) as replicas:
        stream = ScoredQueries(replicas, "nowhere", flavour="official", check=lambda: None)
        with pytest.raises(NotFound, match="nowhere"):
            list(stream.score(asked(1)))


def test_a_checkpoint_proposes_in_place_of_an_untrained_selector(
    run: Any, scorer: Any, data: DataRoot, save_selector: Any
) -> None:
    run.scorer_url = scorer.url
    info = save_selector("ckpt-1")
    generate(run.context(request(checkpoint="ckpt-1")))
    meta = rl_data.read(data.rl_data("rl-1")).meta
    assert meta["selector"] == {"source": "checkpoint", "checkpoint": "ckpt-1", "model_sha256": info.model_sha256}


def test_a_checkpoint_of_another_pool_contract_is_refused(run: Any, data: DataRoot, save_selector: Any) -> None:
    save_selector("ckpt-1")
    with pytest.raises(FingerprintMismatch, match=r"pool\.policy\.k: expected 6, found 5"):
        generate(run.context(request(checkpoint="ckpt-1", pool={"k": 5})))


def test_a_checkpoint_of_another_pool_contract_is_refused_before_there_is_a_job(
    api: TestClient, data: DataRoot, save_selector: Any
) -> None:
    save_selector("ckpt-1")
    other = {"dataset": "toy", "pool": {"k": 5}}
    for path, body in (
        ("/rl-data/generate", {**other, "checkpoint": "ckpt-1"}),
        ("/evaluate", {**other, "checkpoints": ["ckpt-1"]}),
    ):
        answer = api.post(path, json=body)
        assert (answer.status_code, answer.json()["type"]) == (409, "FingerprintMismatch")
        assert answer.json()["context"]["differences"] == {"pool.policy.k": [6, 5]}
    assert api.get("/jobs").json() == {"jobs": []}
    assert api.post("/evaluate", json={"dataset": "toy", "checkpoints": ["ckpt-1"]}).status_code == 202


def evaluation(**fields: Any) -> dict[str, Any]:
    return EvaluateRequest.model_validate({"dataset": "toy", "shots": [0, 1, 2], **fields}).model_dump(mode="json")


def test_evaluation_takes_the_pool_of_its_checkpoint_and_refuses_another_vlm(
    run: Any, scorer: Any, data: DataRoot, save_selector: Any
) -> None:
    run.scorer_url = scorer.url
    save_selector("ckpt-1", generation={"vlm": "another"})
    with pytest.raises(FingerprintMismatch, match=r"generation\.vlm: expected 'another'"):
        evaluate(run.context(evaluation(checkpoints=["ckpt-1"])))
    with pytest.raises(FingerprintMismatch, match=r"pool\.policy\.k: expected 6, found 9"):
        evaluate(run.context(evaluation(checkpoints=["ckpt-1"], pool={"k": 9})))


def test_generated_data_trains_a_selector_that_is_evaluated(
    run: Any, scorer: Any, data: DataRoot, caplog: pytest.LogCaptureFixture
) -> None:
    run.scorer_url = scorer.url
    generate(run.context(request(), job_id="job-g"))
    config = {"rce_epochs": 1, "hidden_dim": 8, "batch_size": 4}
    trained = train_selector(run.context({"rl_data": ["rl-g"], "config": config}, job_id="job-t"))
    assert trained["checkpoint_id"] == "ckpt-t"
    # A second run of the job, after its worker died between saving and reporting, finds what the first one saved.
    assert train_selector(run.context({"rl_data": ["rl-g"], "config": config}, job_id="job-t")) == trained
    asked = evaluation(checkpoints=["ckpt-t"], bootstrap_draws=100)
    result = evaluate(run.context(asked, job_id="job-e"))
    assert ("v3", 1) in {(row["system"], row["shots"]) for row in result["rows"]}
    assert result["checkpoints"] == {"v3": ["ckpt-t"]}
    assert result["trained_on"] == {"ckpt-t": 0}
    assert "Warning" not in result["markdown"]
    on_train = evaluation(checkpoints=["ckpt-t"], split="train", shots=[1, 3], bootstrap_draws=100)
    result = evaluate(run.context(on_train, job_id="job-e"))
    assert result["trained_on"] == {"ckpt-t": 12}
    assert "Warning: ckpt-t was trained on 12 of these 12 queries" in result["markdown"]
    assert "ckpt-t was trained on 12 of these 12 queries" in caplog.text
    assert result["beyond_training"] == [{"system": "v3", "checkpoint": "ckpt-t", "shots": 3, "trained_for": 2}]
    assert "Warning: v3 at 3 shots is beyond training: ckpt-t was trained for at most 2." in result["markdown"]
    data.rl_data("rl-g").unlink()
    result = evaluate(run.context(on_train, job_id="job-e"))
    assert result["trained_on"] == {"ckpt-t": None}
    assert "not known whether ckpt-t was trained on these queries" in result["markdown"]


SELECTORS: dict[str, dict[str, Any]] = {
    "v0": {"architecture": "autoregressive", "num_layers": 1},
    "v1": {"num_layers": 0},
    "v2": {"supervised_epochs": 1, "rce_epochs": 0},
    "v3": {},
}


def test_every_kind_of_selector_is_trained_evaluated_and_proposes(run: Any, scorer: Any, data: DataRoot) -> None:
    """All four from one file, side by side in one evaluation; each names the candidates of a further round."""
    run.scorer_url = scorer.url
    generate(run.context(request(), job_id="job-g"))
    for name, settings in SELECTORS.items():
        config = {"rce_epochs": 1, "hidden_dim": 8, "batch_size": 4, **settings}
        result = train_selector(run.context({"rl_data": ["rl-g"], "config": config}, job_id=f"job-{name}"))
        assert result["checkpoint_id"] == f"ckpt-{name}"
        info = read_info(data.checkpoint(f"ckpt-{name}"))
        assert info.selector["architecture"] == ("autoregressive" if name == "v0" else "pointer")
        assert info.metrics["phase"] == ("supervised" if name == "v2" else "rce")
    checkpoints = [f"ckpt-{name}" for name in SELECTORS]
    result = evaluate(run.context(evaluation(checkpoints=checkpoints, bootstrap_draws=100), job_id="job-e"))
    assert result["checkpoints"] == {f"{name} ckpt-{name}": [f"ckpt-{name}"] for name in SELECTORS}
    alone = evaluate(run.context(evaluation(checkpoints=["ckpt-v0"], bootstrap_draws=100), job_id="job-f"))
    assert alone["checkpoints"] == {"v0": ["ckpt-v0"]}
    again = generate(run.context(request(checkpoint="ckpt-v0", num_retrieval=0), job_id="job-h"))
    model = selector_from_checkpoint(data.checkpoint("ckpt-v0"))
    embeddings = Embeddings.open(data.embeddings("toy"))
    for record in rl_data.read(data.rl_data(again["rl_data_id"])).records:
        pool = torch.from_numpy(embeddings.candidate[list(record.candidate_pool_ids)])[None]
        query = torch.from_numpy(embeddings.query[[record.query_id]])
        best = model.select_beams(query, pool, 2, 5).positions[0]
        found = {one.beam_rank: one.pointer for one in record.candidates if one.gen_method == "beam"}
        assert found[0] == tuple(record.candidate_pool_ids[place] for place in best[0].tolist())


def test_a_job_with_grpo_names_both_checkpoints_and_the_recommended_one(run: Any, scorer: Any, data: DataRoot) -> None:
    run.scorer_url = scorer.url
    generate(run.context(request(), job_id="job-g"))
    config = {"rce_epochs": 1, "grpo_epochs": 1, "hidden_dim": 8, "batch_size": 4}
    body = {"rl_data": ["rl-g"], "config": config}
    trained = train_selector(run.context(body, job_id="job-t"))
    assert trained["checkpoints"] == {"rce": "ckpt-t", "grpo": "ckpt-t-grpo"}
    assert trained["checkpoint_id"] in trained["checkpoints"].values()
    assert trained["metrics"]["recommended"]
    found = trained["recommendation"]
    assert trained["checkpoints"][found["phase"]] == trained["checkpoint_id"]
    assert found["phases"]["grpo"]["over"] == "rce"
    assert found["reason"].startswith("grpo gains ")
    assert trained["curves"] == ["training_curve.png", "training_curve_grpo.png"]
    assert train_selector(run.context(body, job_id="job-t")) == trained
    # Killed between the two: the first phase's comes last, and without it the run is made again.
    remove_folder(data.checkpoint("ckpt-t"))
    again = train_selector(run.context(body, job_id="job-t"))
    assert again == trained
    assert {phase for phase, _, _, _ in run.reports} >= {"rce", "grpo"}


def test_probabilities_on_request_serve_the_rewards_that_need_them(run: Any, scorer: Any, data: DataRoot) -> None:
    run.scorer_url = scorer.url
    generate(run.context(request(shots=[1, 2], gt_prob=True, info_score=True), job_id="job-g"))

    def probability(query: int, pointer: tuple[int, ...]) -> float:
        """EchoEngine's: (m + 1) / (n + 2) where m of n demonstrations give the answer."""
        return (sum(item % 4 == query % 4 for item in pointer) + 1) / (len(pointer) + 2)

    records = rl_data.read(data.rl_data("rl-g")).records
    for record in records:
        for found in record.candidates:
            own = probability(record.query_id, found.pointer)
            assert found.vqa_gt_prob == pytest.approx(own), "ten annotators agree: weight 1"
            gained = own - probability(record.query_id, found.pointer[1:]) if found.pointer else None
            assert found.info_score == pytest.approx(gained)
    assert len({found.info_score for record in records for found in record.candidates}) > 4
    for name, reward in (("h", {"mode": "hybrid", "alpha": 0.5}), ("p", {"mode": "hard01_plus_gtprob"})):
        config = {"rce_epochs": 1, "hidden_dim": 8, "batch_size": 4, "reward": reward}
        trained = train_selector(run.context({"rl_data": ["rl-g"], "config": config}, job_id=f"job-{name}"))
        assert trained["checkpoint_id"] == f"ckpt-{name}"


def test_a_scorer_without_probabilities_refuses_before_anything_is_asked(run: Any, scorer: Any, data: DataRoot) -> None:
    run.scorer_url = scorer.url
    scorer.engine.has_probabilities = False
    with pytest.raises(InvalidInput, match=r"options\.info_score needs the probabilities of answers"):
        generate(run.context(request(info_score=True), job_id="job-1"))
    assert scorer.engine.batches == []
    assert not data.rl_data("rl-1").exists()


def test_a_file_that_does_not_say_its_pools_gets_the_union_of_its_ids(data: DataRoot, tmp_path: Path) -> None:
    dataset = Dataset.open(data.dataset("toy"))
    path = tmp_path / "old.json"
    rows = [{"pointer": [1, 5], "gen_method": "beam"}, {"pointer": [7, 2], "gen_method": "random"}]
    path.write_bytes(orjson.dumps({"3": {"query": {}, "pointer_candidates": rows}}))
    policy = pool_policy([rl_data.read(path, dataset)], dataset)
    # Not without items of the query's image: an old file may show one in a demonstration.
    assert policy == PoolPolicy(sampler="from_pointers", candidate_split="train", exclude=("query",), ids=(1, 2, 5, 7))


def test_an_old_file_with_a_demonstration_of_the_querys_image_is_trained_on(run: Any, data: DataRoot, tmp_path: Path) -> None:
    dataset = Dataset.open(data.dataset("toy"))
    items = [replace(item, image_id=f"pair-{item.item_id // 2}") for item in dataset.items]
    write_dataset(data.dataset("pairs"), replace(dataset.info, name="pairs"), items)
    pairs = Dataset.open(data.dataset("pairs"))
    embeddings = Embeddings.open(data.embeddings("toy"), dataset)
    manifest = replace(embeddings.manifest, dataset_sha256=pairs.info.sha256)
    Embeddings(embeddings.query, embeddings.candidate, manifest).save(data.embeddings("pairs"))
    path = tmp_path / "old.json"
    scores = {"vqa_correct": 1, "vqa_acc_score": 1.0, "vqa_eval_mode": "vqaEval"}
    rows = {
        str(query): {"pointer_candidates": [{"pointer": [query ^ 1, (query + other) % 8], **scores} for other in (2, 4)]}
        for query in range(8)
    }
    path.write_bytes(orjson.dumps(rows))
    rl_data_id, _ = take_in(path, data, "pairs")
    config = {"rce_epochs": 1, "hidden_dim": 8, "batch_size": 4}
    trained = train_selector(run.context({"rl_data": [rl_data_id], "config": config}))
    policy = read_info(data.checkpoint(trained["checkpoint_id"])).pool_policy
    assert policy == {"sampler": "from_pointers", "candidate_split": "train", "exclude": ["query"], "ids": list(range(8))}
