import itertools

import numpy as np
import pytest
import torch

from leverplus.embeddings import Block
from leverplus.errors import InvalidCheckpoint, InvalidConfig, InvalidEmbeddings, InvalidPointer
from leverplus.policies import (
    AutoregressivePolicy,
    Choice,
    V3Policy,
    fixed_positions,
    random_positions,
    selector_policy,
    similar_positions,
    zero_shot,
)
from leverplus.selector import SelectorConfig, new_selector
from leverplus.selector.config import tensor_shapes

torch.set_num_threads(1)

CONFIGS = [
    SelectorConfig(d_model, 32, num_heads=heads, num_layers=layers, state_update=update, dropout=0.5, attn_dropout=0.5)
    for d_model, heads, layers, update in itertools.product((48, 32), (1, 4), (1, 3), ("none", "gate"))
]
CONFIGS += [
    SelectorConfig(d_model, 32, num_layers=0, state_update=update, dropout=0.5)
    for d_model, update in itertools.product((48, 32), ("none", "gate"))
]
CONFIGS += [
    SelectorConfig(d_model, 32, num_heads=heads, num_layers=layers, architecture="autoregressive", dropout=0.5, attn_dropout=0.5)
    for d_model, heads, layers in itertools.product((48, 32), (1, 4), (1, 3))
]
CONFIGS += [
    SelectorConfig(d_model, 32, num_heads=2, num_layers=layers, state_update=update, query_mlp=mlp, dropout=0.5)
    for d_model, layers, update, mlp in ((48, 0, "residual", True), (32, 1, "residual", False), (48, 2, "gate", True))
]
BASELINES = {
    "v0": SelectorConfig(48, 32, num_heads=4, num_layers=2, architecture="autoregressive"),
    "v1": SelectorConfig(48, 32, num_layers=0),
    "v3": SelectorConfig(48, 32, num_heads=4, num_layers=1),
}


def make(config, seed):
    torch.manual_seed(seed)
    model = new_selector(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model, selector_policy(model.tensors(), config)


@pytest.mark.parametrize("number", range(len(CONFIGS)))
def test_numpy_and_torch_choose_the_same(number):
    """Every configuration x 16 queries with pools of 4 to 30, at 1 to 4 shots, greedy and with a beam of 3."""
    config = CONFIGS[number]
    model, policy = make(config, number)
    generator = torch.Generator().manual_seed(100 + number)
    sizes = torch.randint(4, 31, (16,), generator=generator)
    query = torch.randn(16, config.d_model, generator=generator)
    candidates = torch.randn(16, 30, config.d_model, generator=generator)
    mask = torch.arange(30) < sizes.unsqueeze(1)
    with torch.no_grad():
        logits = model(query, candidates, shots=1, pool_mask=mask)[:, 0]
    for shots, beam in ((1, 1), (4, 1), (2, 3), (4, 3)):
        beams = model.select_beams(query, candidates, shots, beam, pool_mask=mask)
        for row, size in enumerate(sizes.tolist()):
            vector, pool = query[row].numpy(), candidates[row, :size].numpy()
            np.testing.assert_allclose(policy.logits(vector, pool), logits[row, :size], atol=1e-4)
            choices = policy.choose_beams(vector, policy.prepare(pool), shots, beam)
            assert [list(choice.positions) for choice in choices] == beams.positions[row].tolist()
            np.testing.assert_allclose([choice.step_logprobs for choice in choices], beams.step_logprobs[row], atol=1e-4)
            assert policy.choose(vector, pool, shots, beam).positions == choices[0].positions


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", BASELINES)
def test_numpy_and_torch_choose_the_same_wherever_the_best_two_are_apart(name, seed):
    """200 queries, 1 to 4 shots, greedy and with a beam of 3; apart: by more than 1e-4, at each of the greedy steps."""
    config = BASELINES[name]
    model, policy = make(config, seed)
    assert isinstance(policy, AutoregressivePolicy if name == "v0" else V3Policy)
    generator = torch.Generator().manual_seed(seed)
    query, pools = torch.randn(200, 48, generator=generator), torch.randn(200, 24, 48, generator=generator)
    prepared = [policy.prepare(pool) for pool in pools.numpy()]
    for shots, beam in itertools.product((1, 2, 3, 4), (1, 3)):
        beams = model.select_beams(query, pools, shots, beam)
        with torch.no_grad():
            best = model(query, pools, beams.positions[:, 0]).topk(2, dim=-1).values
        apart = ((best[..., 0] - best[..., 1]) > 1e-4).all(dim=1)
        if beam > 1:
            apart &= ((beams.logprob[:, :-1] - beams.logprob[:, 1:]) > 1e-4).all(dim=1)
        assert apart.sum() > 150
        for row in apart.nonzero()[:, 0].tolist():
            choice = policy.choose(query[row].numpy(), prepared[row], shots, beam)
            assert list(choice.positions) == beams.positions[row, 0].tolist()


@pytest.mark.parametrize("update", ["none", "gate"])
def test_ties_go_to_the_lower_position_in_both(update):
    config = SelectorConfig(48, 32, num_heads=2, state_update=update)
    model, policy = make(config, 0)
    generator = np.random.default_rng(0)
    for case in range(40):
        distinct = generator.standard_normal((5, 48)).astype(np.float32)
        pool = distinct[generator.integers(0, 5, size=33)]
        query = generator.standard_normal(48).astype(np.float32)
        expected = model.select(torch.from_numpy(query)[None], torch.from_numpy(pool)[None], 4).positions[0].tolist()
        found = policy.choose(query, pool, 4).positions
        assert list(found) == expected, case
        first = int(np.flatnonzero((pool == pool[found[0]]).all(axis=1))[0])
        assert found[0] == first


def test_beams_of_a_small_pool():
    policy = make(CONFIGS[0], 0)[1]
    pool = np.random.default_rng(1).standard_normal((3, 48)).astype(np.float32)
    choices = policy.choose_beams(pool[0], pool, 2, 10)
    assert {choice.positions for choice in choices} == set(itertools.permutations(range(3), 2))
    assert sum(np.exp(choice.logprob) for choice in choices) == pytest.approx(1, abs=1e-5)
    assert choices == sorted(choices, key=lambda choice: -choice.logprob)
    assert policy.choose_beams(pool[0], pool, 0, 3) == [Choice((), (), 0.0)]
    assert len(policy.choose_beams(pool[0], pool, 3, 10)) == 6


def test_prepared_candidates_are_those_of_the_pool():
    policy = make(CONFIGS[1], 0)[1]
    every = np.random.default_rng(2).standard_normal((100, 48)).astype(np.float32)
    ids = np.array([7, 99, 3, 50])
    prepared = policy.prepare(every).take(ids)
    assert len(prepared) == 4
    np.testing.assert_allclose(policy.logits(every[0], prepared), policy.logits(every[0], every[ids]), atol=1e-5)


def test_refusals():
    config = CONFIGS[0]
    model, policy = make(config, 0)
    pool = np.ones((3, 48), dtype=np.float32)
    with pytest.raises(InvalidConfig, match="4, the pool has 3 candidates"):
        policy.choose(pool[0], pool, 4)
    with pytest.raises(InvalidConfig, match="made for vectors of 48"):
        policy.choose(pool[0, :5], pool, 1)
    with pytest.raises(InvalidConfig, match="made for vectors of 48"):
        policy.choose(pool[0], pool[:, :5], 1)
    with pytest.raises(InvalidConfig, match="beam: 0"):
        policy.choose(pool[0], pool, 1, beam=0)
    for each in (policy, make(BASELINES["v1"], 0)[1]):
        with pytest.raises(InvalidConfig, match="the pool is empty"):
            each.choose(pool[0], pool[:0], 0)
    with pytest.raises(InvalidConfig, match="places for at most 4"):
        make(BASELINES["v0"], 0)[1].choose(pool[0], np.eye(6, 48, dtype=np.float32), 5)
    tensors = model.tensors()
    del tensors["cand_proj.weight"]
    with pytest.raises(InvalidCheckpoint, match=r"cand_proj\.weight"):
        V3Policy(tensors, config)


def test_random_positions():
    drawn = [random_positions(6, 2, seed=1, query=query) for query in range(300)]
    assert drawn == [random_positions(6, 2, seed=1, query=query) for query in range(300)]
    assert all(len(set(pair)) == 2 and set(pair) <= set(range(6)) for pair in drawn)
    assert len(set(drawn)) == 30
    assert drawn != [random_positions(6, 2, seed=2, query=query) for query in range(300)]
    assert random_positions(6, 0, seed=1, query=0) == zero_shot() == ()
    with pytest.raises(InvalidConfig, match="7, the pool has 6"):
        random_positions(6, 7, seed=1, query=0)


def test_similar_positions_by_hand():
    blocks = (Block("image", 0, 2), Block("question", 2, 4))
    query = np.array([1, 0, 1, 0], dtype=np.float32)
    pool = np.array([[1, 0, 0, 1], [0, 1, 1, 0], [2, 1, 2, 1], [1, 0, 0, 1]], dtype=np.float32)
    # Image cosines 1, 0, 0.89, 1; question 0, 1, 0.89, 0; whole 0.5, 0.5, 0.89, 0.5. The most similar is last.
    assert similar_positions(query, pool, blocks, "image", 3) == (2, 3, 0)
    assert similar_positions(query, pool, blocks, "text", 2) == (2, 1)
    assert similar_positions(query, pool, blocks, "joint", 2) == (0, 2)
    with pytest.raises(InvalidConfig, match="no block 'image', only joint"):
        similar_positions(query, pool, (Block("joint", 0, 4),), "image", 1)
    with pytest.raises(InvalidConfig, match="5, the pool has 4"):
        similar_positions(query, pool, blocks, "joint", 5)


def test_fixed_positions():
    pool = np.array([40, 10, 30])
    assert fixed_positions((30, 40), pool) == (2, 0)
    with pytest.raises(InvalidPointer, match=r"items \[20\] are not in the pool of 3"):
        fixed_positions((30, 20), pool)


@pytest.mark.parametrize("size", [1e20, 1e38, np.nan])
@pytest.mark.parametrize("settings", [{}, {"state_update": "gate"}, {"num_layers": 0}, {"architecture": "autoregressive"}])
def test_vectors_whose_length_is_not_finite_choose_nothing(size, settings):
    config = SelectorConfig(**{"d_model": 6, "hidden_dim": 4, "num_layers": 2, **settings})
    policy = selector_policy({name: np.ones(shape, np.float32) for name, shape in tensor_shapes(config).items()}, config)
    candidates = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    huge = np.full(6, size, dtype=np.float32)
    with pytest.raises(InvalidEmbeddings, match="query"):
        policy.choose(huge, candidates, 2)
    with pytest.raises(InvalidEmbeddings, match="candidates"):
        policy.choose(candidates[0], np.stack([huge] * 3), 2)
    with pytest.raises(InvalidEmbeddings, match="query"):
        similar_positions(huge, candidates, [], "joint", 2)
