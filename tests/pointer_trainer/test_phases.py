"""Phases as plain values, and each objective on one batch against its formula written out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from leverplus.ids import ItemId
from leverplus.selector import PointerSelectorV3, SelectorConfig, new_selector
from pointer_trainer.batches import QueryExample, RlBatch
from pointer_trainer.objectives import Objective, summarise
from pointer_trainer.phases import grpo_guards, planned_phases, train_only
from pointer_trainer.train_config import TrainConfig

QUERIES, POOL, WIDTH = 3, 6, 8


def example(query_id: int, rewards: list[float], shots: list[int]) -> QueryExample:
    positions = np.full((len(shots), max(shots)), -1)
    for row, count in enumerate(shots):
        positions[row, :count] = [(row + step) % POOL for step in range(count)]
    return QueryExample(ItemId(query_id), np.arange(POOL), positions, np.array(rewards, dtype=np.float32))


def batch() -> RlBatch:
    """Three queries, each with three candidates of one shot and two of two; the second's one-shot rewards are all equal."""
    generator = torch.Generator().manual_seed(0)
    one_shot = [[0, -1], [3, -1], [5, -1]]
    rewards = torch.tensor([[0.0, 1.0, 0.0, 2.0, 0.0], [1.0, 1.0, 1.0, 0.0, 1.0], [2.0, 0.0, 1.0, 0.5, 1.5]])
    return RlBatch(
        query_id=torch.arange(QUERIES),
        query_emb=torch.randn(QUERIES, WIDTH, generator=generator),
        cand_emb=torch.randn(QUERIES, POOL, WIDTH, generator=generator),
        pool_mask=torch.ones(QUERIES, POOL, dtype=torch.bool),
        pointers=torch.tensor([[*one_shot, [1, 2], [4, 0]]] * QUERIES),
        rewards_raw=rewards,
        mask=torch.ones(QUERIES, 5, dtype=torch.bool),
    )


def selector(**settings: Any) -> PointerSelectorV3:
    torch.manual_seed(1)
    return PointerSelectorV3(SelectorConfig(d_model=WIDTH, hidden_dim=8, **settings))


def objective(model: PointerSelectorV3, phase: int = 0, **config: Any) -> Objective:
    settings = TrainConfig(**config)
    return Objective(settings, planned_phases(settings)[phase], model, total_steps=4)


def test_planned_phases():
    (only,) = planned_phases(TrainConfig())
    assert (only.name, only.epochs, only.lr, only.trainable, only.dropout, only.suffix) == ("rce", 5, 1e-4, "all", True, "")
    assert not only.with_reference
    first, second = planned_phases(TrainConfig(grpo_epochs=2, objective="expected_reward"))
    assert (first.name, first.with_reference) == ("expected_reward", True)
    assert (second.name, second.epochs, second.lr, second.trainable, second.suffix) == ("grpo", 2, 1e-5, "head", "-grpo")
    assert not second.dropout
    assert second.with_reference
    assert second.stops_when_worse


def test_supervision_comes_first_and_has_the_runs_id_where_it_is_alone():
    run = planned_phases(TrainConfig(supervised_epochs=2, supervised_lr=3e-4, grpo_epochs=1))
    assert [(phase.name, phase.index, phase.suffix) for phase in run] == [
        ("supervised", 0, "-supervised"), ("rce", 1, ""), ("grpo", 2, "-grpo"),
    ]  # fmt: skip
    assert (run[0].epochs, run[0].lr, run[0].dropout, run[0].trainable) == (2, 3e-4, True, "all")
    (alone,) = planned_phases(TrainConfig(supervised_epochs=2, rce_epochs=0))
    assert (alone.name, alone.index, alone.suffix) == ("supervised", 0, "")


def test_supervision_is_the_cross_entropy_of_the_best_beam():
    """Beams: (0) and (3) of one shot, (4, 0) of two. By reward the best are (3), (0) as the first of two equal ones, (0)."""
    by_beam = np.array([True, True, False, False, True])
    examples = [
        QueryExample(ItemId(row), np.arange(POOL), batch().pointers[row].numpy(), batch().rewards_raw[row].numpy(), by_beam)
        for row in range(QUERIES)
    ]
    settings = TrainConfig(supervised_epochs=1, shot_weights={2: 0.5})
    (phase, _) = planned_phases(settings)
    (first, *_) = material = phase.material([*examples, example(9, [1.0], [1])])
    assert len(material) == QUERIES
    assert first.positions.tolist() == [[0, -1], [3, -1], [4, 0]]
    model, data = selector(), batch()
    beams = replace(
        data, pointers=data.pointers[:, by_beam], rewards_raw=data.rewards_raw[:, by_beam], mask=data.mask[:, by_beam]
    )
    found = Objective(settings, phase, model, total_steps=4).loss(model, beams, step=0)
    logp = model.log_prob(data.query_emb, data.cand_emb, data.pointers, data.mask)
    wanted = -(logp[0, 1] + logp[1, 0] + logp[2, 0]) / 3 - 0.5 * (logp[:, 4] / 2).mean()
    torch.testing.assert_close(found.loss, wanted, atol=1e-6, rtol=1e-6)
    assert found.metrics["groups"] == 6


@pytest.mark.parametrize(
    ("config", "trained"),
    [
        ({}, "head"),
        ({"grpo_form": "reference"}, "all"),
        ({"grpo_form": "reference", "freeze_backbone_in_grpo": True}, "head"),
        ({"grpo_trainable": "attention"}, "attention"),
        ({"grpo_trainable": "all"}, "all"),
    ],
)
def test_what_grpo_trains(config: dict[str, Any], trained: str):
    phase = planned_phases(TrainConfig(grpo_epochs=1, **config))[1]
    assert phase.trainable == trained
    assert grpo_guards(TrainConfig(grpo_epochs=1, **config))


def test_train_only_freezes_the_rest():
    model = selector(state_update="gate")
    names = {name for name, _ in model.named_parameters()}
    head = {"query_proj.weight", "cand_proj.weight", "query_update_gate.weight", "query_update_gate.bias"}
    attention = {name for name in names if name.startswith(("cross_attn_layers.", "attn_norms."))}
    decoder = new_selector(SelectorConfig(d_model=4, hidden_dim=8, architecture="autoregressive"))
    train_only(decoder, "attention")
    trained = {name for name, parameter in decoder.named_parameters() if parameter.requires_grad}
    assert trained == {name for name in decoder.state_dict() if name.startswith("decoder_layers.")}
    for which, wanted in (("head", head), ("attention", attention), ("all", names)):
        parameters = train_only(model, which)
        assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == wanted
        assert len(parameters) == len(wanted)


def test_the_curriculum_takes_the_queries_that_differ_most_first():
    spreads = [0.5, 2.0, 0.0, 1.0]
    examples = [example(number, [0.0, spread, 3.0], [1, 1, 2]) for number, spread in enumerate(spreads)]
    phase = planned_phases(TrainConfig(grpo_epochs=3, grpo_curriculum="spread"))[1]
    taken = [phase.rows(examples, epoch).tolist() for epoch in (1, 2, 3)]
    assert taken == [[1, 3], [0, 1, 3], [0, 1, 2, 3]]
    assert phase.steps(len(examples), 2) == 1 + 2 + 2
    assert planned_phases(TrainConfig(grpo_epochs=3))[1].steps(len(examples), 2) == 6


def test_rce_of_two_numbers_of_shots_is_the_sum_of_their_means():
    model, data = selector(), batch()
    found = objective(model, rce_use_raw_reward=True, shot_weights={2: 0.5}).loss(model, data, step=3).loss
    logp = model.log_prob(data.query_emb, data.cand_emb, data.pointers, data.mask)
    wanted = torch.zeros(())
    for columns, weight in ((slice(0, 3), 1.0), (slice(3, 5), 0.5)):
        weights = torch.softmax(data.rewards_raw[:, columns] / 0.5, -1)
        wanted = wanted - weight * (weights * logp[:, columns]).sum(-1).mean()
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)


def test_flat_groups_are_left_out_where_that_is_asked_for():
    model, data = selector(), batch()
    outputs = objective(model, drop_flat_groups=True).loss(model, data, step=3)
    assert outputs.metrics["dropped_groups"] == 1
    assert objective(model).loss(model, data, step=3).metrics["dropped_groups"] == 0
    logp = model.log_prob(data.query_emb, data.cand_emb, data.pointers, data.mask)
    wanted = torch.zeros(())
    for columns, rows in ((slice(0, 3), [0, 2]), (slice(3, 5), [0, 1, 2])):
        rewards = data.rewards_raw[rows, columns]
        z = (rewards - rewards.mean(-1, keepdim=True)) / rewards.std(-1, keepdim=True)
        wanted = wanted - (torch.softmax(z / 0.5, -1) * logp[rows, columns]).sum(-1).mean()
    torch.testing.assert_close(outputs.loss, wanted, atol=1e-6, rtol=1e-6)


def test_expected_reward_with_the_exact_kl_to_its_beginning():
    start = selector()
    asked = objective(start, objective="expected_reward", kl_beta=0.3)
    model, data = selector(), batch()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    outputs = asked.loss(model, data, step=0)
    logp = model.log_prob(data.query_emb, data.cand_emb, data.pointers, data.mask)
    distributions = [torch.log_softmax(each(data.query_emb, data.cand_emb, shots=1), -1)[:, 0] for each in (model, start)]
    one_step = (distributions[0].exp() * (distributions[0] - distributions[1])).sum(-1)
    wanted = torch.zeros(())
    for columns in (slice(0, 3), slice(3, 5)):
        p = torch.softmax(logp[:, columns], -1)
        wanted = wanted - (p * data.rewards_raw[:, columns]).sum(-1).mean()
    kl_of_two = []
    for pointer in ([1, 2], [4, 0]):
        logits = [each(data.query_emb, data.cand_emb, torch.tensor([pointer] * QUERIES))[:, 1] for each in (model, start)]
        left = [item for item in range(POOL) if item != pointer[0]]
        ours, theirs = (torch.log_softmax(each[:, left], -1) for each in logits)
        kl_of_two.append(one_step + (ours.exp() * (ours - theirs)).sum(-1))
    wanted = wanted + 0.3 * (one_step.mean() + torch.stack(kl_of_two).mean())
    torch.testing.assert_close(outputs.loss, wanted, atol=1e-6, rtol=1e-6)
    assert outputs.metrics["kl"] == pytest.approx((one_step.mean().item() * 3 + torch.stack(kl_of_two).mean().item() * 2) / 5)


@pytest.mark.parametrize("form", ["safe", "reference"])
@pytest.mark.parametrize("advantage", ["zscore", "leave_one_out"])
def test_grpo_begins_with_ratios_of_exactly_one(form: str, advantage: str):
    model = selector(dropout=0.5, attn_dropout=0.5, num_layers=2).eval()
    asked = objective(model, 1, grpo_epochs=1, grpo_form=form, grpo_advantage=advantage)
    outputs = asked.loss(model, batch(), step=0)
    assert outputs.metrics["ratio_error"] == 0.0
    assert outputs.metrics["kl"] == pytest.approx(0.0, abs=1e-9)
    assert outputs.metrics["dropped_groups"] == (1 if form == "safe" else 0)
    with torch.no_grad():
        model.query_proj.weight.add_(0.05)
    assert asked.loss(model, batch(), step=1).metrics["ratio_error"] > 0
    with pytest.raises(AssertionError, match="ratios differ from 1"):
        asked.loss(model, batch(), step=0)


def test_safe_grpo_takes_every_candidate_and_no_flat_group():
    """At the first step the gradient is that of −Σ over shots of the mean over groups of the mean of A · log π."""
    model, data = selector().eval(), batch()
    asked = objective(model, 1, grpo_epochs=1, grpo_advantage="leave_one_out")
    found = torch.autograd.grad(asked.loss(model, data, step=0).loss, model.query_proj.weight)[0]
    logp = model.log_prob(data.query_emb, data.cand_emb, data.pointers, data.mask)
    wanted = torch.zeros(())
    for columns, rows in ((slice(0, 3), [0, 2]), (slice(3, 5), [0, 1, 2])):
        rewards = data.rewards_raw[rows, columns]
        count = rewards.shape[1]
        advantage = count / (count - 1) * (rewards - rewards.mean(-1, keepdim=True))
        wanted = wanted - (advantage * logp[rows, columns]).mean()
    expected = torch.autograd.grad(wanted, model.query_proj.weight)[0]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_the_references_form_is_its_formula():
    model, data = selector().eval(), batch()
    asked = objective(model, 1, grpo_epochs=1, grpo_form="reference", kl_beta=0.2)
    old = model.log_prob(data.query_emb, data.cand_emb, data.pointers, data.mask).detach()
    with torch.no_grad():
        model.query_proj.weight.add_(0.05 * torch.randn_like(model.query_proj.weight))
    outputs = asked.loss(model, data, step=1)
    ratio = (model.log_prob(data.query_emb, data.cand_emb, data.pointers, data.mask) - old).exp()
    advantage = torch.zeros_like(ratio)
    for columns in (slice(0, 3), slice(3, 5)):
        rewards = data.rewards_raw[:, columns]
        advantage[:, columns] = (rewards - rewards.mean(-1, keepdim=True)) / rewards.std(-1, keepdim=True).clamp_min(0.1)
    policy = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
    kl = (ratio - 1 - ratio.log()).mean()
    assert outputs.loss.item() == pytest.approx((policy + 0.2 * kl).item(), abs=1e-6)
    # Adapted after the step: it is above 0.1 here.
    assert kl.item() > 0.1
    assert outputs.metrics["kl_beta"] == 0.2
    assert asked.kl_beta == pytest.approx(0.2 * 1.5)


def test_an_epoch_is_summed_up():
    steps = [
        {"groups": 1.0, "dropped_groups": 1.0, "train_loss": 3.0, "grad_norm": 2.0, "entropy": 1.0, "kl_beta": 0.1},
        {"groups": 3.0, "dropped_groups": 0.0, "train_loss": 1.0, "grad_norm": 5.0, "entropy": 2.0, "kl_beta": 0.2},
    ]
    wanted = {"train_loss": 1.5, "entropy": 1.75, "kl_beta": 0.2, "groups": 4.0, "dropped_groups": 1.0, "grad_norm": 5.0}
    assert summarise(steps) == wanted
