"""The jobs `headroom` and `estimate`, on RL data that a real scorer judged."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch

from leverplus import rl_data
from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset
from leverplus.embeddings import Embeddings
from leverplus.errors import InvalidInput
from leverplus.fingerprint import Fingerprint
from leverplus.ids import ItemId
from leverplus.pools import PoolPolicy, Pools
from leverplus.rl_data import Candidate, QueryRecord
from leverplus.selector import selector_from_checkpoint
from pointer_trainer.jobs.estimate import estimate_selector
from pointer_trainer.jobs.generate import generate
from pointer_trainer.jobs.headroom import headroom
from pointer_trainer.jobs.train import train_selector
from pointer_trainer.requests import EstimateRequest, GenerateRequest, HeadroomRequest

POOL = {"sampler": "random", "k": 6}


def generated(run: Any, name: str, **fields: Any) -> dict[str, Any]:
    body = GenerateRequest.model_validate({"dataset": "toy", "pool": POOL, **fields}).model_dump(mode="json")
    return generate(run.context(body, job_id=f"job-{name}"))


def asked(run: Any, **fields: Any) -> dict[str, Any]:
    body = HeadroomRequest.model_validate({"bootstrap_draws": 100, **fields}).model_dump(mode="json")
    return headroom(run.context(body, job_id="job-h"))


def estimated(run: Any, **fields: Any) -> dict[str, Any]:
    body = EstimateRequest.model_validate({"bootstrap_draws": 200, **fields}).model_dump(mode="json")
    return estimate_selector(run.context(body, job_id="job-e"))


def test_headroom_of_scored_data(run: Any, scorer: Any, data: DataRoot) -> None:
    run.scorer_url = scorer.url
    generated(run, "g", shots=[1, 2], num_random=12, seed=3)
    result = asked(run, rl_data="rl-g")
    assert [one["shots"] for one in result["shots"]] == [1, 2]
    one_shot = result["shots"][0]
    means = {row["system"]: row["mean"] for row in one_shot["rows"]}
    # The engine repeats the last demonstration's colour: whoever has one of the query's colour in the pool can be right.
    assert means["oracle"] > means["random"]
    assert one_shot["oracle_gain"]["difference"] == pytest.approx(means["oracle"] - means[one_shot["best_baseline"]])
    assert result["queries"] + result["queries_left_out"] == 12
    assert (data.run("job-h") / "per_query.parquet").is_file()
    assert "an upper bound that lucky hits raise" in result["markdown"]
    assert "Its test split has not been opened." in result["markdown"]
    assert asked(run, rl_data="rl-g", queries=4)["queries"] <= 4


def test_headroom_needs_demonstrations(run: Any, scorer: Any, data: DataRoot) -> None:
    run.scorer_url = scorer.url
    generated(run, "g", num_random=1)
    read = rl_data.read(data.rl_data("rl-g"))
    empty = [
        QueryRecord(one.query_id, one.query, one.candidate_pool_ids, tuple(c for c in one.candidates if not c.pointer))
        for one in read.records
    ]
    rl_data.write(data.rl_data("rl-zero"), empty, fingerprint=read.fingerprint, meta=read.meta)
    with pytest.raises(InvalidInput, match="nothing is to be chosen"):
        asked(run, rl_data="rl-zero")


def test_headroom_takes_no_test_query(run: Any, data_with_test: DataRoot) -> None:
    run.data = data = data_with_test
    dataset = Dataset.open(data.dataset("toy"))
    policy = PoolPolicy(sampler="random", k=6)
    pools = Pools(dataset, Embeddings.open(data.embeddings("toy"), dataset), policy)
    pool = tuple(ItemId(int(item_id)) for item_id in pools.pool(ItemId(16)))
    record = QueryRecord(ItemId(16), {}, pool, (Candidate((pool[0],), "random", vqa_acc_score=1.0, vqa_eval_mode="file"),))
    fingerprint = Fingerprint(dataset=dataset.fingerprint(), pool=pools.fingerprint())
    rl_data.write(data.rl_data("rl-test"), [record], fingerprint=fingerprint, meta={"pool_policy": policy.to_json()})
    with pytest.raises(InvalidInput, match="hold 1 test queries, which only a final evaluation may look at"):
        asked(run, rl_data="rl-test")


def exact(data: DataRoot, checkpoint: str, temperature: float) -> float:
    """The selector's expected accuracy over the twelve train queries, by going through all pointers of two shots."""
    dataset = Dataset.open(data.dataset("toy"))
    model = selector_from_checkpoint(data.checkpoint(checkpoint)).eval()
    embeddings = Embeddings.open(data.embeddings("toy"), dataset)
    pointers = torch.tensor(list(permutations(range(6), 2)))
    total = 0.0
    records = rl_data.read(data.rl_data("rl-logged")).records
    for record in records:
        pool = list(record.candidate_pool_ids)
        candidates = torch.from_numpy(embeddings.candidate[pool])[None]
        logits = model.forward(torch.from_numpy(embeddings.query[[record.query_id]]), candidates, shots=1)[0, 0] / temperature
        first = torch.softmax(logits.detach().double(), dim=-1).numpy()
        for a, b in pointers.tolist():
            # v3 without a state update: the second step has the first one's logits, without what was chosen.
            probability = first[a] * first[b] / (1 - first[a])
            total += probability * (pool[b] % 4 == record.query_id % 4)
    return total / len(records)


def test_estimates_are_near_the_exact_value(run: Any, scorer: Any, data: DataRoot) -> None:
    run.scorer_url = scorer.url
    generated(run, "g", num_random=8)
    config = {"rce_epochs": 2, "hidden_dim": 8, "batch_size": 4}
    train_selector(run.context({"rl_data": ["rl-g"], "config": config}, job_id="job-t"))
    generated(run, "logged", checkpoint="ckpt-t", logging={"draws": 200, "epsilon": 0.3}, num_beams=2, num_retrieval=1)
    result = estimated(run, rl_data="rl-logged", checkpoint="ckpt-t", temperature=1.5)
    row = result["rows"][0]
    assert (row["shots"], row["queries"], row["draws"]) == (2, 12, 2400)
    truth = exact(data, "ckpt-t", 1.5)
    by_name = {one["estimator"]: one for one in row["estimates"]}
    for name in ("snips", "doubly_robust"):
        # 2,400 draws over twelve queries whose values are all in the sample: a standard error of about a point.
        assert by_name[name]["value"] == pytest.approx(truth, abs=0.05)
        assert by_name[name]["low"] <= truth <= by_name[name]["high"]
    assert result["trained_on"] == 12
    assert "was trained on 12 of these queries" in result["markdown"]
    assert result["logging_mixture"]["random"] == 0.3


def test_a_policy_too_far_away_is_refused(run: Any, scorer: Any, data: DataRoot) -> None:
    run.scorer_url = scorer.url
    pool = {"sampler": "random", "k": 11}
    generated(run, "g", pool=pool)
    train_selector(run.context({"rl_data": ["rl-g"], "config": {"rce_epochs": 1, "hidden_dim": 8}}, job_id="job-t"))
    generated(run, "logged", pool=pool, logging={"draws": 20})
    # At this temperature one of 110 pointers is as good as certain, and one uniform draw in 110 is that.
    with pytest.raises(InvalidInput, match=r"effective sample size .* below 5 %"):
        estimated(run, rl_data="rl-logged", checkpoint="ckpt-t", temperature=0.01)


def test_rows_that_are_no_independent_draws_are_refused(run: Any, scorer: Any, data: DataRoot) -> None:
    run.scorer_url = scorer.url
    generated(run, "g")
    train_selector(run.context({"rl_data": ["rl-g"], "config": {"rce_epochs": 1, "hidden_dim": 8}}, job_id="job-t"))
    with pytest.raises(InvalidInput, match="no independent draws of a stated mixture: beams, retrievals"):
        estimated(run, rl_data="rl-g", checkpoint="ckpt-t")
    generated(run, "logged", logging={"draws": 6})
    read = rl_data.read(data.rl_data("rl-logged"))
    rl_data.write(data.rl_data("rl-filtered"), read.records, fingerprint=read.fingerprint, meta={**read.meta, "filtered": ["x"]})
    with pytest.raises(InvalidInput, match="were filtered"):
        estimated(run, rl_data="rl-filtered", checkpoint="ckpt-t")
    first = read.records[0]
    logged = [one for one in first.candidates if one.propensity is not None]
    short = QueryRecord(first.query_id, first.query, first.candidate_pool_ids, tuple(logged[1:]))
    rl_data.write(data.rl_data("rl-short"), [short, *read.records[1:]], fingerprint=read.fingerprint, meta=read.meta)
    with pytest.raises(InvalidInput, match=r"query 0 has \d draws of 2 shots, the mixture made 6"):
        estimated(run, rl_data="rl-short", checkpoint="ckpt-t")
    assert np.isclose(sum(read.meta["logging_mixture"]["weights"].values()), 1.0)
