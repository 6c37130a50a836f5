"""The phase that learns from the answers of a dataset: its targets, what it may look at, that it goes on to the same bits."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset
from leverplus.embeddings import Embeddings
from leverplus.errors import InvalidConfig
from leverplus.ids import ItemId
from leverplus.pools import PoolPolicy, Pools
from leverplus.selector import SelectorConfig, new_selector
from pointer_trainer.answer_table import AnswerBatch, AnswerTable
from pointer_trainer.epochs import learning_rate_factor
from pointer_trainer.losses import telling_loss, telling_targets
from pointer_trainer.objectives import Objective
from pointer_trainer.phases import planned_phases
from pointer_trainer.train_config import TrainConfig

TRAIN_ITEMS = 12
"""Of the dataset `toy` in conftest.py."""


def told(*rows: str) -> torch.Tensor:
    return torch.tensor([[[mark == "x" for mark in row] for row in rows]])


NOTHING = torch.zeros(1, 4, dtype=torch.bool)


def test_the_first_demonstration_is_wanted_by_the_words_that_it_tells():
    """Two words asked: an item that tells both counts twice as much as one that tells one."""
    targets = telling_targets(torch.tensor([[True, True]]), told("xx", "x.", ".x", ".."), NOTHING)
    assert targets.tolist() == [[0.5, 0.25, 0.25, 0.0]]


def test_the_next_one_is_wanted_by_what_is_still_missing():
    taken = torch.tensor([[False, True, False, False]])
    targets = telling_targets(torch.tensor([[True, True]]), told("xx", "x.", ".x", ".."), taken)
    assert targets.tolist() == [[0.5, 0.0, 0.5, 0.0]]


def test_where_all_is_told_what_tells_it_again_is_wanted():
    taken = torch.tensor([[True, False, False, False]])
    targets = telling_targets(torch.tensor([[True, True]]), told("xx", "x.", ".x", ".."), taken)
    assert targets.tolist() == [[0.0, 0.5, 0.5, 0.0]]


def test_a_pool_that_tells_nothing_has_no_target_and_no_gradient():
    targets = telling_targets(torch.tensor([[True]]), told(".", ".", ".", "."), NOTHING)
    assert targets.sum() == 0
    logits = torch.full((1, 4), -torch.inf, requires_grad=True)
    loss = telling_loss(logits, targets)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.tolist() == [[0.0] * 4]


def test_the_loss_is_the_mean_over_queries_that_have_a_target():
    """Uniform logits over two open items: log 2 for the first query; the second has no target."""
    logits = torch.tensor([[0.0, 0.0, -torch.inf], [5.0, 1.0, 0.0]])
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert telling_loss(logits, targets).item() == pytest.approx(np.log(2))


def table(data: DataRoot, held_out: list[int], **policy: Any) -> AnswerTable:
    dataset = Dataset.open(data.dataset("toy"))
    embeddings = Embeddings.open(data.embeddings("toy"), dataset)
    pools = Pools(dataset, embeddings, PoolPolicy(**policy))
    return AnswerTable(pools, embeddings, [ItemId(0), ItemId(1)], [ItemId(one) for one in held_out], shots=2)


def test_no_held_out_query_is_trained_on_and_none_of_another_split(data: DataRoot):
    found = table(data, held_out=[1, 5])
    assert found.examples == [number for number in range(TRAIN_ITEMS) if number not in (1, 5)]


def test_a_batch_tells_equal_answers_of_other_images(data: DataRoot):
    """The answer of item i is COLOURS[i % 4], one word; each item has an image of its own."""
    found = table(data, held_out=[])
    (batch,) = found.batches(TRAIN_ITEMS, np.arange(TRAIN_ITEMS), np.random.default_rng(0))
    order = [int((batch.pool_emb == row).all(1).nonzero()[0, 0]) for row in batch.query_emb]
    same = torch.tensor([[a % 4 == b % 4 and a != b for b in range(TRAIN_ITEMS)] for a in range(TRAIN_ITEMS)])
    assert batch.told[:, order, 0].tolist() == same.tolist()
    assert batch.open[:, order].tolist() == (~torch.eye(TRAIN_ITEMS, dtype=torch.bool)).tolist()


def test_too_few_candidates_are_refused(data: DataRoot):
    with pytest.raises(InvalidConfig, match="2 candidates are too few for 2 shots"):
        table(data, held_out=[], sampler="from_pointers", ids=(0, 4))


@pytest.mark.parametrize(
    "settings", [{"query_mlp": True, "state_update": "residual", "num_layers": 0}, {}, {"architecture": "autoregressive"}]
)
def test_every_selector_learns_from_answers(settings: dict[str, Any]):
    """Answers that the first number of a vector gives: after some steps the loss is far below that of guessing."""
    torch.manual_seed(0)
    config = TrainConfig(answer_epochs=1, hidden_dim=16, num_heads=1, dropout=0.0, **settings)
    model = new_selector(
        config.selector(4) if "architecture" in settings else SelectorConfig(4, 16, **{"num_layers": 1, **settings})
    )
    objective = Objective(config, planned_phases(config)[0], model, 60, answer_shots=2)
    kinds = torch.arange(24) % 3
    vectors = torch.nn.functional.one_hot(kinds, 4).float() + 0.01 * torch.randn(24, 4)
    same = (kinds[:, None] == kinds[None]) & ~torch.eye(24, dtype=torch.bool)
    batch = AnswerBatch(
        vectors, vectors, torch.ones(24, 1, dtype=torch.bool), same.unsqueeze(2), ~torch.eye(24, dtype=torch.bool)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses: list[float] = []
    for step in range(60):
        found = objective.loss(model, batch, step)
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()
        losses.append(found.loss.item())
    assert found.metrics["groups"] == 24
    # Of 23 items 7 tell the answer: the least cross-entropy is log 7 and then log 6.
    assert losses[-1] < np.log(7) + np.log(6) + 0.15


def test_cosine_rises_over_a_tenth_and_falls_to_almost_nothing():
    factors = [learning_rate_factor("cosine", step, 100) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert all(a > b for a, b in pairwise(factors[9:]))
    assert 0 < factors[-1] < 0.001
    assert {learning_rate_factor("constant", step, 100) for step in range(100)} == {1.0}


def test_the_phases_and_their_checkpoints():
    both = planned_phases(TrainConfig(answer_epochs=3, rce_epochs=2))
    assert [(phase.name, phase.suffix, phase.index) for phase in both] == [("answers", "-answers", 0), ("rce", "", 1)]
    alone = planned_phases(TrainConfig(answer_epochs=3, rce_epochs=0))
    assert [(phase.name, phase.suffix) for phase in alone] == [("answers", "")]
