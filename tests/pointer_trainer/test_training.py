"""Whole runs on a synthetic set in which one kind of demonstration always helps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch

from leverplus.checkpoints import load_checkpoint
from leverplus.dataset import Dataset, DatasetInfo, Item, write_dataset
from leverplus.embeddings import Block, EmbeddingManifest, Embeddings
from leverplus.errors import (
    Cancelled,
    Conflict,
    FingerprintMismatch,
    IdOutsidePool,
    InvalidConfig,
    InvalidInput,
    TrainingDiverged,
)
from leverplus.fingerprint import Fingerprint
from leverplus.ids import ItemId
from leverplus.pools import PoolPolicy, Pools
from leverplus.rl_data import Candidate, QueryRecord, RlData
from leverplus.selector import PointerSelectorV3, SelectorConfig, selector_from_checkpoint
from pointer_trainer import losses
from pointer_trainer.batches import build_examples
from pointer_trainer.best_fixed import rank_fixed_pointers
from pointer_trainer.example_table import ExampleTable
from pointer_trainer.results import TrainResult
from pointer_trainer.splits import split_queries
from pointer_trainer.train_config import TrainConfig, read_train_config
from pointer_trainer.training import train

ITEMS, QUERIES, WIDTH = 90, 80, 16
QUICK = {"rce_lr": 1e-2, "hidden_dim": 16, "batch_size": 8, "dropout": 0.0}


@dataclass(frozen=True)
class World:
    dataset: Dataset
    embeddings: Embeddings
    policy: PoolPolicy
    data: RlData


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Items whose id divides by 4 point into one direction; a demonstration of that kind makes the answer right."""
    folder = tmp_path_factory.mktemp("data") / "synthetic"
    write_dataset(
        folder,
        DatasetInfo("synthetic", "1", "none", "replicated"),
        (Item(ItemId(i), "train", None, f"image-{i // 2}", str(i), f"question {i}?", "yes", ("yes",) * 10) for i in range(ITEMS)),
    )
    dataset = Dataset.open(folder)
    random = np.random.default_rng(0)
    rows = random.normal(size=(ITEMS, WIDTH)).astype(np.float32)
    rows[::4, 0] += 8.0
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    manifest = EmbeddingManifest(
        {"name": "synthetic"}, dataset.info.sha256, (Block("joint", 0, WIDTH),), WIDTH, ITEMS, "same", "encoders"
    )
    embeddings = Embeddings(rows, rows, manifest)
    policy = PoolPolicy(sampler="random", k=12)
    pools = Pools(dataset, embeddings, policy)
    records = [_record(ItemId(query_id), pools.pool(query_id), random) for query_id in range(QUERIES)]
    fingerprint = Fingerprint(dataset=dataset.fingerprint(), pool=pools.fingerprint(), generation={"vlm": "none"})
    return World(dataset, embeddings, policy, RlData({}, fingerprint, records))


def _record(query_id: ItemId, pool: np.ndarray[Any, Any], random: np.random.Generator) -> QueryRecord:
    candidates = [Candidate((), None, vqa_correct=1, vqa_acc_score=1.0, vqa_eval_mode="file")]
    for shots in (1, 2):
        for _ in range(6):
            pointer = tuple(ItemId(int(item)) for item in random.choice(pool, size=shots, replace=False))
            good = int(pointer[0] % 4 == 0)
            if pointer not in [candidate.pointer for candidate in candidates]:
                candidates.append(Candidate(pointer, "random", vqa_correct=good, vqa_acc_score=float(good), vqa_eval_mode="file"))
    return QueryRecord(query_id, {}, tuple(ItemId(int(item)) for item in pool), tuple(candidates))


def run(world: World, folder: Path, files: Sequence[RlData] | None = None, **config: Any) -> TrainResult:
    files = [world.data] if files is None else files
    return train(
        TrainConfig(**{**QUICK, **config}),
        files,
        world.embeddings,
        dataset=world.dataset,
        pool_policy=world.policy,
        rl_data_refs=[{"id": f"rl-{number}", "sha256": "0" * 64} for number, _ in enumerate(files)],
        checkpoint_folder=folder / "ckpt-1",
        run_folder=folder / "run",
        progress=lambda phase, step, total, extra: None,
        should_stop=lambda: False,
    )


def with_candidates(world: World, change: Mapping[int, Any]) -> RlData:
    """The world's RL data with some candidates of every query altered: index -> fields."""
    records = [
        replace(
            record,
            candidates=tuple(replace(one, **change.get(number, {})) for number, one in enumerate(record.candidates)),
        )
        for record in world.data.records
    ]
    return replace(world.data, records=records)


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"state_update": "gate", "num_layers": 2},
        {"rce_use_raw_reward": True},
        {"use_top1_only": True},
        {"label_smoothing": 0.1},
        {"architecture": "autoregressive", "rce_lr": 3e-3},
    ],
    ids=["default", "gate", "raw", "top1", "smoothing", "autoregressive"],
)
def test_it_learns_what_helps(world: World, tmp_path: Path, extra: dict[str, Any]):
    result = run(world, tmp_path, **extra)
    before, after = result.epochs[0], result.metrics
    assert after["held_out_expected_reward"] > after["held_out_uniform_reward"] + 0.2
    assert after["held_out_expected_reward"] > before["held_out_expected_reward"] + 0.2
    assert after["held_out_greedy_reward"] > before["held_out_greedy_reward"]
    assert after["held_out_expected_reward"] == max(row["held_out_expected_reward"] for row in result.epochs[1:])
    assert result.epochs[-1]["train_loss"] < result.epochs[1]["train_loss"]


def test_a_bi_encoder_learns_which_demonstrations_suit_a_query(world: World, tmp_path: Path):
    """It cannot prefer the same demonstrations for all queries, as the others do above; here those are right that point away."""
    rows = world.embeddings.query
    records: list[QueryRecord] = []
    for record in world.data.records:
        good = [int(bool(one.pointer) and rows[record.query_id] @ rows[one.pointer[0]] < 0) for one in record.candidates]
        judged = (replace(one, vqa_correct=g, vqa_acc_score=float(g)) for one, g in zip(record.candidates, good, strict=True))
        records.append(replace(record, candidates=tuple(judged)))
    result = run(world, tmp_path, [replace(world.data, records=records)], num_layers=0, rce_lr=3e-2, rce_epochs=10)
    before, after = result.epochs[0], result.metrics
    assert before["held_out_expected_reward"] < before["held_out_uniform_reward"]
    assert after["held_out_expected_reward"] > before["held_out_expected_reward"] + 0.2
    assert result.epochs[-1]["train_loss"] < result.epochs[1]["train_loss"]


def test_accuracy_is_in_one_unit_whatever_the_reward(world: World, tmp_path: Path):
    by_accuracy = run(world, tmp_path / "accuracy", rce_epochs=1, reward={"mode": "soft_only"}).metrics
    twice = run(world, tmp_path / "twice", rce_epochs=1).metrics
    assert by_accuracy["held_out_expected_accuracy"] == pytest.approx(by_accuracy["held_out_expected_reward"], abs=1e-6)
    assert twice["held_out_expected_reward"] == pytest.approx(2 * twice["held_out_expected_accuracy"], abs=1e-6)


def test_accuracy_counts_candidates_whose_reward_is_unknown(world: World, tmp_path: Path):
    likely = {"mode": "hard01_plus_gtprob", "hard_weight": 0.0}
    half = with_candidates(world, {number: {"vqa_gt_prob": 0.5 + number / 100} for number in (1, 2, 7, 8)})
    found = run(world, tmp_path, [half], rce_epochs=1, reward=likely).metrics
    groups: dict[tuple[int, int], list[float]] = {}
    for record in half.records[64:]:  # the last fifth of 80 queries
        for one in record.candidates[1:]:
            assert one.vqa_acc_score is not None
            groups.setdefault((record.query_id, len(one.pointer)), []).append(one.vqa_acc_score)
    assert found["candidates_used"] < sum(len(record.candidates) - 1 for record in half.records)
    uniform = sum(sum(group) / len(group) for group in groups.values()) / len(groups)
    assert found["held_out_uniform_accuracy"] == pytest.approx(uniform, abs=1e-6)


def test_an_unknown_accuracy_is_none(world: World, tmp_path: Path):
    told = {number: {"vqa_correct": None, "vqa_acc_score": None, "info_score": number / 10} for number in range(1, 13)}
    unknown = with_candidates(world, {0: {"vqa_correct": None, "vqa_acc_score": None}, **told})
    found = run(world, tmp_path, [unknown], rce_epochs=1, reward={"mode": "hybrid", "alpha": 1.0}).metrics
    assert (found["held_out_expected_accuracy"], found["held_out_uniform_accuracy"]) == (None, None)
    assert found["held_out_expected_reward"] > 0


def test_the_epoch_is_kept_by_what_the_config_says(world: World, tmp_path: Path):
    # A rate so high that the loss turns up again while the expected reward still moves.
    by_loss = run(world, tmp_path / "loss", keep_epoch="loss", rce_lr=0.3, rce_epochs=6)
    by_reward = run(world, tmp_path / "reward", rce_lr=0.3, rce_epochs=6)
    assert by_loss.epochs == by_reward.epochs
    assert by_loss.metrics["held_out_rce"] == min(row["held_out_rce"] for row in by_loss.epochs[1:])
    assert by_reward.metrics["held_out_expected_reward"] == max(row["held_out_expected_reward"] for row in by_reward.epochs[1:])
    assert by_loss.metrics["epoch"] != by_reward.metrics["epoch"]


def test_rce_equals_the_formula_taken_one_pointer_at_a_time(world: World):
    """Mean over groups of Σ_i w_i Σ_t CE(logits_t, a_t), w = softmax(z / τ): no batch, no padding, no shared encoding."""
    examples, _ = build_examples([world.data], TrainConfig().reward)
    batch = ExampleTable(examples[:7], world.embeddings).batch(np.arange(7))
    torch.manual_seed(0)
    model = PointerSelectorV3(SelectorConfig(d_model=WIDTH, hidden_dim=8, num_layers=2, state_update="gate"))
    rows, mask, _ = batch.groups()
    logp = model.log_prob(batch.query_emb, batch.cand_emb, batch.pointers, batch.mask, batch.pool_mask)[rows]
    found = losses.rce_loss(logp, losses.zscore(batch.rewards_raw[rows], mask), mask, 0.8).loss

    per_group: list[torch.Tensor] = []
    for example in examples[:7]:
        query = torch.from_numpy(world.embeddings.query[[example.query_id]])
        pool = torch.from_numpy(world.embeddings.candidate[example.pool])[None]
        for shots in (1, 2):
            pointers = [row[:shots] for row in example.positions.tolist() if len([p for p in row if p >= 0]) == shots]
            rewards = example.rewards[(example.positions >= 0).sum(-1) == shots].astype(np.float64)
            spread = rewards.std(ddof=1)
            scaled = np.exp((rewards - rewards.mean()) / (spread if spread > 0 else 1) / 0.8)
            costs = [
                torch.nn.functional.cross_entropy(
                    model(query, pool, torch.tensor([pointer]))[0], torch.tensor(pointer), reduction="sum"
                )
                for pointer in pointers
            ]
            per_group.append(sum((w * cost for w, cost in zip(scaled / scaled.sum(), costs, strict=True)), torch.zeros(())))
    assert found.item() == pytest.approx(torch.stack(per_group).mean().item(), abs=1e-6, rel=1e-6)


def test_what_a_run_leaves_behind(world: World, tmp_path: Path):
    result = run(world, tmp_path)
    rows = [orjson.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_bytes().splitlines()]
    assert rows == list(result.epochs)
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert rows[0]["train_loss"] is None
    assert rows[5]["temperature"] == 0.5
    assert rows[5]["step"] == 5 * 8
    assert (rows[0]["train_queries"], rows[0]["held_out_queries"]) == (64, 16)
    assert rows[0]["zero_shot"] == QUERIES
    assert rows[0]["file_share"] == 1.0
    assert result.curve_path.read_bytes().startswith(b"\x89PNG")
    tensors, info = load_checkpoint(tmp_path / "ckpt-1")
    assert info.checkpoint_id == result.checkpoint_id == "ckpt-1"
    assert info.shots == [1, 2]
    assert info.metrics == dict(result.metrics)
    assert info.fingerprint.digests() == world.data.fingerprint.digests()
    assert info.pool_policy == world.policy.to_json()
    trained = sorted(world.data.records, key=lambda record: record.query_id)[:64]
    assert info.best_fixed == rank_fixed_pointers(trained)
    assert set(info.best_fixed) == {"1", "2"}
    assert read_train_config(info.training) == TrainConfig(**QUICK)
    assert tensors["query_proj.weight"].shape == (16, 16)


def test_the_same_seed_gives_the_same_weights(world: World, tmp_path: Path):
    settings = {"rce_epochs": 2, "dropout": 0.3}
    state = torch.random.get_rng_state()
    run(world, tmp_path / "a", **settings)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    run(world, tmp_path / "b", **settings)
    run(world, tmp_path / "c", **settings, seed=1)
    first, second, other = (load_checkpoint(tmp_path / name / "ckpt-1")[0] for name in "abc")
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not np.array_equal(first["query_proj.weight"], other["query_proj.weight"])


def test_unknown_rewards_are_left_out_and_counted(world: World, tmp_path: Path):
    unknown = {"vqa_correct": None, "vqa_acc_score": None, "vqa_eval_mode": "error"}
    data = with_candidates(world, {1: unknown, 2: {"vqa_eval_mode": "fallback"}})
    metrics = run(world, tmp_path, [data], rce_epochs=1, skip_fallback_reward=True).metrics
    assert metrics["unknown_reward"] == QUERIES
    assert metrics["skipped_fallback"] == QUERIES
    assert metrics["error_share"] == pytest.approx(QUERIES / metrics["candidates"])


def test_nothing_known_is_refused(world: World, tmp_path: Path):
    unknown = {"vqa_correct": None, "vqa_acc_score": None, "vqa_eval_mode": "error"}
    with pytest.raises(
        InvalidInput, match=r"known reward, e\.g\. query 0, pointer \[\d+\]: vqa_correct and vqa_acc_score unknown"
    ):
        run(world, tmp_path, [with_candidates(world, dict.fromkeys(range(20), unknown))])
    with pytest.raises(InvalidInput, match=r"query 0, pointer .*: vqa_gt_prob unknown, .*'hard01_plus_gtprob'"):
        run(world, tmp_path, reward={"mode": "hard01_plus_gtprob"})


def test_settings_without_effect_are_told(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    metrics = run(world, tmp_path, rce_epochs=1, kl_beta=0.3, freeze_backbone_in_grpo=True).metrics
    assert metrics["settings_without_effect"] == ["kl_beta", "freeze_backbone_in_grpo"]
    assert "grpo_epochs is 0: kl_beta, freeze_backbone_in_grpo" in caplog.text
    assert "settings_without_effect" not in run(world, tmp_path / "again", rce_epochs=1).metrics


def test_other_contracts_are_refused(world: World, tmp_path: Path):
    other_policy = replace(world, policy=PoolPolicy(sampler="random", k=12, seed=1))
    with pytest.raises(FingerprintMismatch, match=r"rl-0.*pool\.policy\.seed: expected 1, found 0"):
        run(other_policy, tmp_path)
    part = {**world.dataset.fingerprint(), "version": "2"}
    other_data = replace(world.data, fingerprint=replace(world.data.fingerprint, dataset=part))
    with pytest.raises(FingerprintMismatch, match=r"dataset\.version: expected '1', found '2'"):
        run(world, tmp_path, [other_data])
    for generation in ({"vlm": "another"}, None):
        other_vlm = replace(world.data, fingerprint=replace(world.data.fingerprint, generation=generation))
        for files in ([world.data, other_vlm], [other_vlm, world.data]):
            with pytest.raises(FingerprintMismatch, match="generation"):
                run(world, tmp_path, files)
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_a_pool_contract_is_trained_on_what_will_be_served(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    used = sorted({item for record in world.data.records for one in record.candidates for item in one.pointer})
    served = replace(world, policy=PoolPolicy(sampler="from_pointers", exclude=("query",), ids=tuple(used)))
    foreign = replace(world.data, fingerprint=replace(world.data.fingerprint, pool=None, generation=None))
    run(served, tmp_path, [foreign], rce_epochs=1)
    _, info = load_checkpoint(tmp_path / "ckpt-1")
    assert (info.metrics["queries_with_replaced_pool"], info.metrics["shared_pool_ids"]) == (QUERIES, len(used))
    assert f"pools of {QUERIES} queries are replaced by one shared pool of {len(used)} ids" in caplog.text
    own = run(world, tmp_path / "own", rce_epochs=1).metrics
    assert not {"queries_with_replaced_pool", "shared_pool_ids"} & set(own)
    contract = Fingerprint(pool=Pools(world.dataset, world.embeddings, served.policy).fingerprint())
    contract.require_same(info.fingerprint, subject="checkpoint", parts=("pool",))
    too_small = replace(world, policy=PoolPolicy(sampler="from_pointers", exclude=("query",), ids=tuple(used[:-1])))
    with pytest.raises(IdOutsidePool, match=rf"item {used[-1]} "):
        run(too_small, tmp_path / "again", [foreign])


def test_a_checkpoint_is_never_overwritten(world: World, tmp_path: Path):
    (tmp_path / "ckpt-1").mkdir()
    with pytest.raises(Conflict, match="ckpt-1"):
        run(world, tmp_path)


def test_progress_and_cancellation(world: World, tmp_path: Path):
    seen: list[tuple[str, int, int]] = []
    with pytest.raises(Cancelled):
        train(
            TrainConfig(**QUICK),
            [world.data],
            world.embeddings,
            dataset=world.dataset,
            pool_policy=world.policy,
            rl_data_refs=[{"id": "rl-0", "sha256": ""}],
            checkpoint_folder=tmp_path / "ckpt-1",
            run_folder=tmp_path / "run",
            progress=lambda phase, step, total, extra: seen.append((phase, step, total)),
            should_stop=lambda: len(seen) == 3,
        )
    assert seen == [("rce", 1, 40), ("rce", 2, 40), ("rce", 3, 40)]
    assert not (tmp_path / "ckpt-1").exists()


def test_a_loss_that_is_not_finite_stops_the_run(world: World, tmp_path: Path):
    rows = world.embeddings.query.copy()
    rows[0] = np.finfo(np.float32).max
    broken = replace(world, embeddings=Embeddings(rows, rows, world.embeddings.manifest))
    with pytest.raises(TrainingDiverged, match="learning rate"):
        run(broken, tmp_path)
    assert not (tmp_path / "ckpt-1").exists()


def test_splits():
    ids = [ItemId(item) for item in (7, 1, 4, 9, 2)]
    images = {item: f"image-{item // 3}" for item in ids}
    assert split_queries(ids, images, 0.8, "by_query") == ([1, 2, 4, 7], [9])
    # Images: {1, 2}, {4}, {7}, {9}; half of five rounded down is two.
    assert split_queries(ids, images, 0.5, "by_image") == ([1, 2], [4, 7, 9])
    assert split_queries(ids, dict.fromkeys(ids[:4], "a") | {ids[4]: "b"}, 0.5, "by_image") == ([1, 4, 7, 9], [2])
    assert split_queries(ids[:2], images, 0.1, "by_query") == ([1], [7])
    with pytest.raises(InvalidInput, match="1 image"):
        split_queries(ids, dict.fromkeys(ids, "a"), 0.5, "by_image")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            {"freeze_backbone_in_grpo": True, "grpo_trainable": "attention"},
            "freeze_backbone_in_grpo True trains the head alone, but grpo_trainable is 'attention'",
        ),
        (
            {"objective": "expected_reward", "use_top1_only": True},
            "use_top1_only True is of RCE, but objective is 'expected_reward'",
        ),
        ({"objective": "expected_reward", "label_smoothing": 0.1}, "label_smoothing 0.1 is of RCE"),
        ({"shot_weights": {"5": 1.0}}, "shot_weights.5.*less than or equal to 4"),
        ({"shot_weights": {"2": -1.0}}, "shot_weights.2.*greater than or equal to 0"),
        ({"rce_epoch": 3}, "rce_epoch: Extra"),
        ({"reward": {"mode": "hard_only", "weight": 2}}, "reward.weight"),
        ({"reward": {"mode": "softest"}}, "softest"),
        ({"reward": {"mode": "legacy"}}, "alpha"),
        ({"hidden_dim": 10, "num_heads": 3}, "hidden_dim 10 is not a multiple of num_heads 3"),
        ({"hidden_dim": 10, "architecture": "autoregressive"}, "hidden_dim 10 is not a multiple of num_heads 4"),
        ({"architecture": "autoregressive", "num_layers": 0}, "selector.num_layers: 0, must be a whole number of at least 1"),
        ({"architecture": "autoregressive", "state_update": "gate"}, "selector.state_update: 'gate', but an autoregressive"),
        ({"num_layers": 0, "grpo_epochs": 1, "grpo_trainable": "attention"}, "nothing to train, because num_layers is 0"),
        ({"rce_epochs": 0, "grpo_epochs": 2}, r"supervised_epochs and rce_epochs are 0 \(grpo_epochs 2\): nothing is trained"),
        ({"rce_lr": float("nan")}, "rce_lr"),
        ({"train_ratio": 1.0}, "train_ratio"),
    ],
)
def test_configs_that_cannot_be_meant(value: dict[str, Any], words: str):
    with pytest.raises(InvalidConfig, match=words):
        read_train_config(value)


def test_config_defaults_are_the_references():
    config = TrainConfig()
    assert (config.rce_epochs, config.grpo_epochs, config.rce_lr, config.grpo_lr, config.train_ratio) == (5, 0, 1e-4, 1e-5, 0.8)
    assert (config.kl_beta, config.clip_epsilon, config.advantage_clip, config.num_layers) == (0.1, 0.2, 5, 1)
    assert not any((config.rce_use_raw_reward, config.skip_fallback_reward, config.freeze_backbone_in_grpo, config.use_top1_only))
    assert read_train_config({"reward": {"mode": "separated", "hard_weight": 2}}).reward.hard_weight == 2
    assert (config.architecture, config.num_heads, config.supervised_epochs) == ("pointer", 1, 0)


def test_a_decoder_has_a_size_of_its_own():
    config = read_train_config({"architecture": "autoregressive"})
    assert (config.num_layers, config.num_heads, config.hidden_dim) == (2, 4, 256)
    assert read_train_config(config.model_dump(mode="json")) == config
    assert read_train_config({"architecture": "autoregressive", "num_layers": 1}).num_layers == 1
    selector = config.selector(512)
    assert (selector.architecture, selector.d_model, selector.num_layers) == ("autoregressive", 512, 2)


GRPO: dict[str, Any] = {"rce_epochs": 2, "grpo_epochs": 2, "grpo_lr": 1e-3}


def of_phase(result: TrainResult, name: str) -> list[Mapping[str, Any]]:
    return [row for row in result.epochs if row["phase"] == name]


def test_grpo_starts_from_the_best_epoch_before_it_and_has_its_own_checkpoint(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    result = run(world, tmp_path, **GRPO)
    first, second = of_phase(result, "rce"), of_phase(result, "grpo")
    assert result.checkpoints == {"rce": "ckpt-1", "grpo": "ckpt-1-grpo"}
    best = max(first[1:], key=lambda row: row["held_out_expected_reward"])
    assert second[0]["held_out_expected_reward"] == pytest.approx(best["held_out_expected_reward"], abs=1e-6)
    assert {name: second[1][name] for name in ("ratio_mean", "kl", "entropy", "clip_fraction", "kl_beta")}.keys()
    assert second[1]["kl"] > 0
    assert second[1]["kl_beta"] == 0.1
    assert second[1]["ratio_mean"] != 1.0
    assert second[1]["dropped_groups"] > 0
    rce, of_rce = load_checkpoint(tmp_path / "ckpt-1")
    grpo, of_grpo = load_checkpoint(tmp_path / "ckpt-1-grpo")
    assert (of_rce.metrics["phase"], of_grpo.metrics["phase"]) == ("rce", "grpo")
    changed = {name for name in rce if not np.array_equal(rce[name], grpo[name])}
    assert changed == {"query_proj.weight", "cand_proj.weight"}
    found = result.recommendation
    for phase, info in (("rce", of_rce), ("grpo", of_grpo)):
        assert found.phases[phase].mean == pytest.approx(info.metrics["held_out_expected_reward"], abs=1e-6)
        assert info.metrics["recommendation"] == found.to_json()
    # The last 16 of 80 queries, two of an image.
    assert (found.queries, found.images, found.measure) == (16, 8, "held_out_expected_reward")
    low = found.phases["grpo"].low
    assert low is not None
    better = low > 0
    assert found.phase == ("grpo" if better else "rce")
    assert (of_rce.metrics["recommended"], of_grpo.metrics["recommended"]) == (not better, better)
    assert result.checkpoint_id == ("ckpt-1-grpo" if better else "ckpt-1")
    assert sorted(path.name for path in (tmp_path / "run").glob("*.png")) == ["training_curve.png", "training_curve_grpo.png"]
    assert "GRPO is experimental" in caplog.text
    assert "only the head is trained, ratios are exactly 1 at the first step" in caplog.text
    assert "only RCE is run" not in caplog.text
    # RCE is what it is without GRPO.
    alone = run(world, tmp_path / "alone", rce_epochs=2)
    assert alone.checkpoints == {"rce": "ckpt-1"}
    assert load_checkpoint(tmp_path / "alone" / "ckpt-1")[0].keys() == rce.keys()
    assert all(np.array_equal(rce[name], tensor) for name, tensor in load_checkpoint(tmp_path / "alone" / "ckpt-1")[0].items())
    assert "grpo_epochs is 0: only RCE is run, and its checkpoint is the result" in caplog.text


def test_the_references_form_trains_everything_and_adapts_its_beta(world: World, tmp_path: Path):
    result = run(world, tmp_path, **GRPO, grpo_form="reference", dropout=0.3, grpo_curriculum="spread")
    rce, grpo = (load_checkpoint(tmp_path / name)[0] for name in ("ckpt-1", "ckpt-1-grpo"))
    assert all(not np.array_equal(rce[name], grpo[name]) for name in rce)
    assert of_phase(result, "grpo")[1]["kl_beta"] != 0.1
    # Half of the 64 queries, then all, in batches of 8.
    assert [row["step"] for row in of_phase(result, "grpo")] == [0, 4, 12]


def test_grpo_that_does_not_help_stops_and_is_not_recommended(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    # What helps the queries that are trained on hurts those that are held out.

    def turned(one: Candidate) -> Candidate:
        return replace(one, vqa_correct=1 - (one.vqa_correct or 0), vqa_acc_score=1.0 - (one.vqa_acc_score or 0.0))

    turned_records = [replace(record, candidates=tuple(map(turned, record.candidates))) for record in world.data.records[64:]]
    data = replace(world.data, records=[*world.data.records[:64], *turned_records])
    caplog.set_level("INFO")
    result = run(world, tmp_path, [data], **{**GRPO, "grpo_epochs": 9})
    rows = of_phase(result, "grpo")
    assert [row["epoch"] for row in rows] == [0, 1]
    assert rows[1]["held_out_expected_reward"] < rows[0]["held_out_expected_reward"]
    assert "grpo stops after epoch 1: held-out expected reward fell from" in caplog.text
    assert result.checkpoint_id == "ckpt-1"
    gain = result.recommendation.phases["grpo"].gain
    assert gain is not None
    assert f"recommended is ckpt-1: grpo gains {gain:+.4f} [" in caplog.text
    assert gain < 0


def test_a_grpo_checkpoint_that_exists_is_not_overwritten(world: World, tmp_path: Path):
    (tmp_path / "ckpt-1-grpo").mkdir()
    with pytest.raises(Conflict, match="ckpt-1-grpo exists already"):
        run(world, tmp_path, **GRPO)
    assert not (tmp_path / "run").exists()


def test_the_expected_reward_is_an_objective_of_its_own(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    result = run(world, tmp_path, objective="expected_reward", temperature_end=0.7, kl_beta=0.01)
    assert result.checkpoints == {"expected_reward": "ckpt-1"}
    assert result.metrics["held_out_expected_reward"] > result.epochs[0]["held_out_expected_reward"] + 0.2
    assert result.metrics["kl"] > 0
    assert result.metrics["settings_without_effect"] == ["temperature_end"]
    assert "only expected_reward is run" in caplog.text


def test_queries_that_only_the_fallback_scored_are_dropped_in_both_parts(world: World, tmp_path: Path):
    fallback = {"vqa_eval_mode": "fallback"}
    records = list(world.data.records)
    for place in (0, 1, 79):
        candidates = tuple(replace(one, **fallback) for one in records[place].candidates)
        records[place] = replace(records[place], candidates=candidates)
    metrics = run(world, tmp_path, [replace(world.data, records=records)], rce_epochs=1, skip_fallback_reward=True).metrics
    assert (metrics["train_queries"], metrics["train_queries_dropped"]) == (62, 2)
    assert (metrics["held_out_queries"], metrics["held_out_queries_dropped"]) == (15, 1)
    assert metrics["queries_without_candidates"] == 3


def test_hybrid_rewards_of_generated_files(world: World, tmp_path: Path):
    """info_score as `rl generate --info-score` writes it: null for zero-shot."""
    records = [
        replace(
            record,
            candidates=tuple(
                replace(one, info_score=0.1 * (one.pointer[0] % 4 == 0) if one.pointer else None) for one in record.candidates
            ),
        )
        for record in world.data.records
    ]
    data = replace(world.data, records=records)
    result = run(world, tmp_path, [data], reward={"mode": "hybrid", "alpha": 0.5})
    assert result.metrics["unknown_reward"] == 0
    assert result.metrics["held_out_expected_reward"] > result.epochs[0]["held_out_expected_reward"]


def test_shots_in_files_of_their_own_are_the_shots_of_one_file(world: World, tmp_path: Path):
    def only(shots: int) -> RlData:
        records = [
            replace(record, candidates=tuple(one for one in record.candidates if len(one.pointer) == shots))
            for record in world.data.records
        ]
        return replace(world.data, records=records)

    together = run(world, tmp_path / "one", rce_epochs=1)
    apart = run(world, tmp_path / "two", [only(2), only(1)], rce_epochs=1)
    assert apart.metrics["train_loss"] == together.metrics["train_loss"]
    weighted = run(world, tmp_path / "weighted", rce_epochs=1, shot_weights={"1": 1, "2": 0})
    alone = run(world, tmp_path / "alone", [only(1)], rce_epochs=1)
    # A query without one-shot candidates does not exist here: both see the same groups in the same order.
    assert weighted.metrics["train_loss"] == pytest.approx(alone.metrics["train_loss"], rel=1e-5)
    with pytest.raises(InvalidConfig, match=r"shot_weights: \{1: 0.0\} leaves nothing of data with shots \[1\]"):
        run(world, tmp_path / "nothing", [only(1)], shot_weights={1: 0})


BEAMS = {number: {"gen_method": "beam"} for number in (1, 2, 3, 7, 8)}
"""Three of the one-shot candidates and two of the two-shot ones."""


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"drop_flat_groups": True}, "drop_flat_groups: True leaves nothing, phase rce"),
        ({"group_weight": "best_over_mean", "grpo_epochs": 1}, "group_weight: 'best_over_mean' leaves nothing, phase rce"),
        ({"drop_flat_groups": True, "objective": "expected_reward"}, "phase expected_reward"),
    ],
)
def test_weights_that_leave_nothing_of_equal_rewards_are_refused(
    world: World, tmp_path: Path, settings: dict[str, Any], words: str
):
    with pytest.raises(InvalidConfig, match=words):
        run(world, tmp_path, [without_preferences(world)], rce_epochs=1, **settings)
    assert not list(tmp_path.glob("**/checkpoint.json"))


def test_equal_rewards_are_told_by_every_phase_that_learns_nothing_from_them(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    run(world, tmp_path, [without_preferences(world)], rce_epochs=1, grpo_epochs=1)
    told = [record.getMessage() for record in caplog.records if "all rewards are equal" in record.getMessage()]
    assert [message.partition(":")[0] for message in told] == ["phase rce", "phase grpo"]


def without_preferences(world: World) -> RlData:
    records = [
        replace(record, candidates=tuple(replace(one, vqa_correct=0, vqa_acc_score=0.0) for one in record.candidates))
        for record in world.data.records
    ]
    return replace(world.data, records=records)


def test_supervision_alone_imitates_the_best_beam(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    data = with_candidates(world, BEAMS)
    caplog.set_level("INFO")
    result = run(world, tmp_path, [data], supervised_epochs=5, supervised_lr=1e-2, rce_epochs=0, rce_lr=1e-4)
    assert result.checkpoints == {"supervised": "ckpt-1"}
    assert {row["phase"] for row in result.epochs} == {"supervised"}
    assert result.epochs[-1]["train_loss"] < result.epochs[1]["train_loss"]
    assert result.metrics["held_out_expected_reward"] > result.epochs[0]["held_out_expected_reward"] + 0.1
    assert result.metrics["train_queries_without_beams"] == 0
    assert result.metrics["temperature"] is None
    _, info = load_checkpoint(tmp_path / "ckpt-1")
    assert (info.metrics["phase"], info.shots) == ("supervised", [1, 2])
    assert [path.name for path in (tmp_path / "run").glob("*.png")] == ["training_curve.png"]
    assert "the supervised phase imitates the best beams of 64 queries; 0 have none" in caplog.text
    assert "only the supervised phase is run, and its checkpoint is the result" in caplog.text
    again = run(
        world, tmp_path / "unused", [data], supervised_epochs=1, rce_epochs=0, temperature_end=0.7, objective="expected_reward"
    )
    assert again.metrics["settings_without_effect"] == ["rce_lr", "objective", "temperature_end"]
    assert "supervised_epochs is 1, rce_epochs is 0, grpo_epochs is 0: rce_lr, objective, temperature_end" in caplog.text


def test_supervision_sees_nothing_but_beams(world: World, tmp_path: Path):
    """The other candidates may be worth what they like: what is trained is the same; only held-out figures tell."""
    only = {"supervised_epochs": 2, "rce_epochs": 0, "keep_epoch": "loss"}
    others = {number: {"vqa_correct": 1, "vqa_acc_score": 1.0} for number in (4, 5, 9, 10, 11)}
    first, second = with_candidates(world, BEAMS), with_candidates(world, BEAMS | others)
    one, other = (run(world, tmp_path / name, [data], **only).epochs for name, data in (("a", first), ("b", second)))
    assert [row["train_loss"] for row in one] == [row["train_loss"] for row in other]
    assert one[1]["held_out_rce"] != other[1]["held_out_rce"]


def test_rce_goes_on_from_supervision(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    data = with_candidates(world, {1: {"gen_method": "beam"}, 2: {"gen_method": "beam"}})
    config = {"supervised_epochs": 2, "rce_epochs": 2, "grpo_epochs": 1}
    result = run(world, tmp_path, [data], **config)
    assert result.checkpoints == {"supervised": "ckpt-1-supervised", "rce": "ckpt-1", "grpo": "ckpt-1-grpo"}
    best = max(of_phase(result, "supervised")[1:], key=lambda row: row["held_out_expected_reward"])
    start = of_phase(result, "rce")[0]
    assert start["held_out_expected_reward"] == pytest.approx(best["held_out_expected_reward"], abs=1e-6)
    infos = {name: load_checkpoint(tmp_path / name)[1] for name in result.checkpoints.values()}
    # The beams are of one shot alone.
    assert {name: info.shots for name, info in infos.items()} == {
        "ckpt-1-supervised": [1], "ckpt-1": [1, 2], "ckpt-1-grpo": [1, 2],
    }  # fmt: skip
    assert [name for name, info in infos.items() if info.metrics["recommended"]] == [result.checkpoint_id]
    curves = sorted(path.name for path in (tmp_path / "run").glob("*.png"))
    assert curves == ["training_curve.png", "training_curve_grpo.png", "training_curve_supervised.png"]
    run(world, tmp_path / "two", [data], **{**config, "grpo_epochs": 0})
    assert "only the supervised phase and then RCE is run" in caplog.text


def test_supervision_without_beams_is_refused(world: World, tmp_path: Path):
    with pytest.raises(InvalidInput) as refused:
        run(world, tmp_path, [world.data, world.data], supervised_epochs=3)
    total = sum(len(record.candidates) for record in world.data.records)
    held = f"has 0 beams among {total} candidates ({total - QUERIES} random, {QUERIES} unknown)"
    assert "supervised_epochs is 3, but none of the 64 queries to be trained on has a beam" in str(refused.value)
    assert f"rl-0 {held}; rl-1 {held}. Generate with num_beams above 0" in str(refused.value)
    # Beams there are, but their rewards are not known; and some queries without any are no reason to refuse.
    unknown = {"gen_method": "beam", "vqa_correct": None, "vqa_acc_score": None, "vqa_eval_mode": "error"}
    with pytest.raises(InvalidInput, match=f"a known reward to imitate: rl-0 has {QUERIES} beams among {total}"):
        run(world, tmp_path, [with_candidates(world, {1: unknown})], supervised_epochs=1)
    records = [*with_candidates(world, BEAMS).records[:10], *world.data.records[10:]]
    metrics = run(world, tmp_path, [replace(world.data, records=records)], supervised_epochs=1, rce_epochs=0).metrics
    assert metrics["train_queries_without_beams"] == 54


@pytest.mark.parametrize(
    "settings", [{"num_layers": 0}, {"architecture": "autoregressive", "dropout": 0.2}], ids=["bi-encoder", "autoregressive"]
)
def test_every_selector_goes_through_all_phases_and_says_what_it_is(world: World, tmp_path: Path, settings: dict[str, Any]):
    data = with_candidates(world, BEAMS)
    config = TrainConfig(**{**QUICK, **settings})
    for trainable in ("head", "all"):
        folder = tmp_path / trainable
        result = run(
            world,
            folder,
            [data],
            supervised_epochs=1,
            rce_epochs=1,
            grpo_epochs=1,
            grpo_lr=1e-3,
            grpo_trainable=trainable,
            **settings,
        )
        loaded = {phase: load_checkpoint(folder / name) for phase, name in result.checkpoints.items()}
        for tensors, info in loaded.values():
            assert info.selector_config == config.selector(WIDTH)
            assert selector_from_checkpoint(folder / info.checkpoint_id).tensors().keys() == tensors.keys()
        rce, grpo = loaded["rce"][0], loaded["grpo"][0]
        changed = {name for name in rce if not np.array_equal(rce[name], grpo[name])}
        assert changed == ({"query_proj.weight", "cand_proj.weight"} if trainable == "head" else set(rce))
