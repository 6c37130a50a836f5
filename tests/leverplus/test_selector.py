import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leverplus.errors import InvalidConfig, InvalidPointer
from leverplus.selector import PointerSelectorV3, SelectorConfig, new_selector, tensor_shapes
from leverplus.selector.attention import attend_to_pool
from leverplus.selector.decoding import top_in_order

torch.set_num_threads(1)

VARIANTS = {
    "none": {"num_layers": 2},
    "gate": {"num_layers": 2, "state_update": "gate"},
    "bi-encoder": {"num_layers": 0},
    "bi-encoder, gate": {"num_layers": 0, "state_update": "gate"},
    "autoregressive": {"num_layers": 2, "architecture": "autoregressive"},
}
every_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


def make(seed=0, **config):
    torch.manual_seed(seed)
    model = new_selector(SelectorConfig(**{"d_model": 12, "hidden_dim": 8, **config})).eval()
    # Off the near-identity start, so that every part matters.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def inputs(batch=3, pool=7, d=12, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, d, generator=generator), torch.randn(batch, pool, d, generator=generator)


def transparent(state_update="none", temperature=0.1):
    """d_model 2 = hidden 2; attention gives nothing, so the state is LayerNorm(query); projections are the identity."""
    model = PointerSelectorV3(SelectorConfig(2, 2, state_update=state_update, temperature=temperature)).eval()
    with torch.no_grad():
        model.cross_attn_layers[0].out_proj.weight.zero_()
        model.cross_attn_layers[0].out_proj.bias.zero_()
        model.query_proj.weight.copy_(torch.eye(2))
        model.cand_proj.weight.copy_(torch.eye(2))
    return model


# LayerNorm of (3, 1) is (1, -1) up to its epsilon; of unit length, (1, -1)/sqrt 2.
QUERY = torch.tensor([[3.0, 1.0]])
CANDIDATES = torch.tensor([[[0.0, 5.0], [2.0, 0.0], [1.0, -1.0], [-4.0, 0.0]]])
# Cosines with it: -1/sqrt 2, 1/sqrt 2, 1, -1/sqrt 2.
HALF = 0.5**0.5


def test_logits_by_hand():
    model = transparent()
    logits = model(QUERY, CANDIDATES, torch.tensor([[2, 1, -1]]))
    expected = 10 * torch.tensor([-HALF, HALF, 1, -HALF])
    torch.testing.assert_close(logits[0, 0], expected)
    torch.testing.assert_close(logits[0, 1], torch.tensor([-10 * HALF, 10 * HALF, -100, -10 * HALF]))
    torch.testing.assert_close(logits[0, 2], torch.tensor([-10 * HALF, -100, -100, -10 * HALF]))


def test_choice_by_hand():
    """Without a state update the second choice is the second best; the two of -1/sqrt 2 tie, and 0 comes before 3."""
    selection = transparent(temperature=0.5).select(QUERY, CANDIDATES, 4)
    assert selection.positions.tolist() == [[2, 1, 0, 3]]
    high, low = np.exp(2 * HALF), np.exp(-2 * HALF)
    expected = [np.e**2 / (np.e**2 + high + 2 * low), high / (high + 2 * low), 0.5, 1]
    np.testing.assert_allclose(selection.step_logprobs[0].exp(), expected, rtol=1e-5)
    np.testing.assert_allclose(selection.logprob[0].exp(), np.prod(expected), rtol=1e-5)


def test_a_bi_encoder_by_hand():
    """Without a layer the state is the query itself: (3, 1)/sqrt 10, whatever the pool holds."""
    model = PointerSelectorV3(SelectorConfig(2, 2, num_layers=0)).eval()
    with torch.no_grad():
        model.query_proj.weight.copy_(torch.eye(2))
        model.cand_proj.weight.copy_(torch.eye(2))
    logits = model(QUERY, CANDIDATES, torch.tensor([[1, 2]]))
    expected = 10 * torch.tensor([1, 3, 2 * HALF, -3]) / 10**0.5
    torch.testing.assert_close(logits[0, 0], expected)
    expected[1] = -100
    torch.testing.assert_close(logits[0, 1], expected)
    torch.testing.assert_close(model(QUERY, CANDIDATES[:, :2], shots=1)[0, 0], logits[0, 0, :2])


def test_gate_by_hand():
    """A gate of 1/2 puts the state half way to what was chosen."""
    model = transparent("gate")
    with torch.no_grad():
        model.query_update_gate.weight.zero_()
    logits = model(QUERY, CANDIDATES, torch.tensor([[1, 0]]))
    # State (1, -1)/sqrt 2 and choice (1, 0): their bisector has the angle -22.5°.
    cos, sin = np.cos(np.pi / 8), np.sin(np.pi / 8)
    expected = torch.tensor([-10 * sin, -100, 10 * (cos + sin) * HALF, -10 * cos], dtype=torch.float32)
    torch.testing.assert_close(logits[0, 1], expected)


def test_tensors_are_named_as_the_reference_names_them():
    for update in ("none", "gate"):
        for d_model in (12, 8):
            config = SelectorConfig(d_model, 8, num_heads=2, num_layers=3, state_update=update)
            found = {name: tuple(tensor.shape) for name, tensor in PointerSelectorV3(config).state_dict().items()}
            assert found == tensor_shapes(config)
    assert set(tensor_shapes(SelectorConfig(512, num_layers=0))) == {
        "input_proj.weight", "query_proj.weight", "cand_proj.weight",
    }  # fmt: skip
    names = set(tensor_shapes(SelectorConfig(512, state_update="gate")))
    assert names == {
        "input_proj.weight", "cross_attn_layers.0.in_proj_weight", "cross_attn_layers.0.in_proj_bias",
        "cross_attn_layers.0.out_proj.weight", "cross_attn_layers.0.out_proj.bias", "attn_norms.0.weight", "attn_norms.0.bias",
        "query_proj.weight", "cand_proj.weight", "query_update_gate.weight", "query_update_gate.bias",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("layers", "update", "millions"),
    [(0, "none", 0.26), (1, "none", 0.53), (2, "none", 0.79), (3, "none", 1.05), (1, "gate", 0.66)],
)
def test_size(layers, update, millions):
    model = PointerSelectorV3(SelectorConfig(512, num_layers=layers, state_update=update))
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == millions


def test_projections_start_near_the_identity():
    weight = PointerSelectorV3(SelectorConfig(512)).query_proj.weight.detach() - torch.eye(256)
    assert abs(weight.std().item() - 0.01) < 0.001


@every_variant
def test_log_prob_is_the_sum_of_forced_log_softmax(variant):
    model = make(**variant, num_heads=2)
    query, candidates = inputs()
    pointers = torch.tensor([[[0, 1, 2], [3, -1, -1], [-1, -1, -1], [6, 5, -1]]] * 3)
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1, 3] = False
    logprob = model.log_prob(query, candidates, pointers, mask)
    for b in range(3):
        for c, length in enumerate((3, 1, 0, 2)):
            steps = torch.log_softmax(model(query, candidates, pointers[:, c]), dim=-1)[b]
            expected = sum(steps[t, pointers[b, c, t]].item() for t in range(length)) if mask[b, c] else 0.0
            assert logprob[b, c].item() == pytest.approx(expected, abs=1e-5)
    assert logprob[:, 2].tolist() == [0, 0, 0]


@every_variant
def test_probabilities_of_all_pointers_sum_to_one(variant):
    model = make(**variant)
    query, candidates = inputs(pool=4)
    pointers = torch.tensor([[[a, b] for a in range(4) for b in range(4) if a != b]] * 3)
    logprob = model.log_prob(query, candidates, pointers, torch.ones(3, 12, dtype=torch.bool))
    torch.testing.assert_close(logprob.exp().sum(1), torch.ones(3))


@every_variant
def test_padding_of_a_pool_changes_nothing(variant):
    model = make(**variant, num_heads=2)
    query, candidates = inputs(pool=4)
    padded = torch.cat([candidates, torch.full((3, 5, 12), float("nan"))], dim=1)
    mask = torch.arange(9).expand(3, 9) < 4
    pointers = torch.tensor([[[3, 0], [1, -1]]] * 3)
    given = torch.ones(3, 2, dtype=torch.bool)
    torch.testing.assert_close(
        model.log_prob(query, padded, pointers, given, mask), model.log_prob(query, candidates, pointers, given)
    )
    logits = model(query, padded, pointers[:, 0], pool_mask=mask)
    assert torch.isneginf(logits[:, :, 4:]).all()
    torch.testing.assert_close(logits[:, :, :4], model(query, candidates, pointers[:, 0]))
    with pytest.raises(InvalidConfig, match="5, the smallest pool of the batch has 4"):
        model.select(query, padded, 5, pool_mask=mask)
    for beam in (1, 3):
        chosen = model.select(query, padded, 4, beam, pool_mask=mask).positions
        assert chosen.sort(dim=1).values.tolist() == [[0, 1, 2, 3]] * 3
        assert torch.equal(chosen, model.select(query, candidates, 4, beam).positions)


@every_variant
def test_gradients_are_finite_with_padding_and_ragged_pointers(variant):
    model = make(**variant).train()
    query, candidates = inputs(pool=5)
    candidates[:, 4] = float("nan")
    mask = torch.tensor([[True] * 4 + [False]] * 3)
    pointers = torch.tensor([[[3, 2, 1], [0, -1, -1], [-1, -1, -1]]] * 3)
    model.log_prob(query, candidates, pointers, torch.ones(3, 3, dtype=torch.bool), mask).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@every_variant
@pytest.mark.parametrize("beam", [1, 4])
def test_permuting_the_pool_permutes_the_choice(variant, beam):
    model = make(**variant)
    query, candidates = inputs(batch=20, pool=9)
    before = model.select(query, candidates, 3, beam)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    after = model.select(query, candidates[:, order], 3, beam)
    assert torch.equal(order[after.positions], before.positions)
    torch.testing.assert_close(after.logprob, before.logprob)


@every_variant
def test_forward_without_pointers_follows_the_greedy_choice(variant):
    model = make(**variant)
    query, candidates = inputs()
    logits = model(query, candidates, shots=3)
    assert torch.equal(logits.argmax(dim=-1), model.select(query, candidates, 3).positions)
    assert model(query, candidates, torch.tensor([[0, 1]] * 3), shots=1).shape == (3, 1, 7)
    assert model(query, candidates, shots=0).shape == (3, 0, 7)


@settings(max_examples=40)
@given(st.integers(0, 999), st.integers(1, 6), st.integers(0, 4), st.integers(2, 5), st.sampled_from([*VARIANTS.values()]))
def test_beams(seed, pool, shots, beam, variant):
    model = make(seed=seed % 7, **variant)
    query, candidates = inputs(batch=2, pool=pool, seed=seed)
    if shots > pool:
        with pytest.raises(InvalidConfig, match="smallest pool"):
            model.select_beams(query, candidates, shots, beam)
        return
    beams = model.select_beams(query, candidates, shots, beam)
    pointers = int(np.prod([pool - step for step in range(shots)]))
    assert beams.positions.shape == (2, beam if shots else 1, shots)
    filled = torch.isfinite(beams.logprob)
    # One step sees every pointer: where there are fewer than beams, the rest is empty.
    if shots < 2:
        assert filled.sum(dim=1).tolist() == [min(pointers, beam if shots else 1)] * 2
    assert (beams.positions[~filled] == -1).all()
    for row, ok in zip(beams.positions.tolist(), filled.tolist(), strict=True):
        valid = [tuple(pointer) for pointer, here in zip(row, ok, strict=True) if here]
        assert len(set(valid)) == len(valid)
        assert all(len(set(pointer)) == shots for pointer in valid)
    given = model.log_prob(query, candidates, beams.positions, filled)
    torch.testing.assert_close(given[filled], beams.logprob[filled], atol=1e-5, rtol=1e-5)
    assert (beams.logprob[:, 0] >= model.select(query, candidates, shots).logprob - 2e-5).all()
    assert (beams.logprob[:, :-1] >= beams.logprob[:, 1:] - 2e-5).all()


@every_variant
def test_a_wide_beam_is_exhaustive(variant):
    model = make(**variant, temperature=0.5)
    query, candidates = inputs(batch=4, pool=5)
    best = model.select(query, candidates, 2, beam=5)
    every = torch.tensor([[[a, b] for a in range(5) for b in range(5) if a != b]] * 4)
    logprob = model.log_prob(query, candidates, every, torch.ones(4, 20, dtype=torch.bool))
    torch.testing.assert_close(best.logprob, logprob.max(dim=1).values)


def test_equal_candidates_go_by_position():
    model = make(num_layers=2)
    query, candidates = inputs(batch=8, pool=1)
    for beam in (1, 3):
        assert model.select(query, candidates.expand(-1, 37, -1), 4, beam).positions.tolist() == [[0, 1, 2, 3]] * 8


def test_top_in_order():
    scores = torch.tensor([[1.0, 3.0, 3.0 + 1e-6, float("-inf")], [float("-inf")] * 4])
    best, index = top_in_order(scores, 4)
    assert index[0, :3].tolist() == [1, 2, 0]
    assert torch.isneginf(best).tolist() == [[False, False, False, True], [True] * 4]


@every_variant
def test_sampling_follows_the_policy(variant):
    model = make(**variant, temperature=0.5)
    query, candidates = inputs(batch=1, pool=4)
    samples = model.sample(query, candidates, 2, count=6000, generator=torch.Generator().manual_seed(5))
    every = torch.tensor([[[a, b] for a in range(4) for b in range(4) if a != b]])
    expected = model.log_prob(query, candidates, every, torch.ones(1, 12, dtype=torch.bool)).exp()[0]
    share = torch.tensor([(samples.positions[0] == pair).all(dim=1).float().mean().item() for pair in every[0]])
    # Standard error of a share of 6,000: at most 0.0065.
    assert (share - expected).abs().max() < 0.025
    given = model.log_prob(query, candidates, samples.positions, torch.ones(1, 6000, dtype=torch.bool))
    torch.testing.assert_close(samples.step_logprobs.sum(-1), given, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(samples.proposal_step_logprobs, samples.step_logprobs)
    again = model.sample(query, candidates, 2, count=6000, generator=torch.Generator().manual_seed(5))
    assert torch.equal(again.positions, samples.positions)


def test_sampling_temperature():
    model = make()
    query, candidates = inputs(batch=2)
    cold = model.sample(query, candidates, 3, count=5, temperature=1e-3)
    assert torch.equal(cold.positions, model.select(query, candidates, 3).positions.unsqueeze(1).expand(-1, 5, -1))
    hot = model.sample(query, candidates, 1, count=2, temperature=1e6)
    torch.testing.assert_close(hot.proposal_step_logprobs.exp(), torch.full((2, 2, 1), 1 / 7))
    assert not torch.allclose(hot.step_logprobs, hot.proposal_step_logprobs)
    assert model.sample(query, candidates, 0, count=2).positions.shape == (2, 2, 0)
    with pytest.raises(InvalidConfig, match="must be above 0"):
        model.sample(query, candidates, 1, count=1, temperature=0)


@every_variant
def test_choice_is_made_without_dropout_and_leaves_the_mode(variant):
    model = make(**variant, dropout=0.5, attn_dropout=0.5).train()
    query, candidates = inputs()
    first = model.select(query, candidates, 3)
    assert model.training
    assert torch.equal(first.step_logprobs, model.select(query, candidates, 3).step_logprobs)
    assert not torch.equal(model(query, candidates, shots=1), model(query, candidates, shots=1))


@pytest.mark.parametrize(
    ("pointer", "reason"),
    [
        ([0, 7], "position 7 is outside the pool, which has positions 0 to 6"),
        ([-2, 0], "position -2 is outside"),
        ([3, 3], "comes twice"),
        ([-1, 3], "may only end a pointer"),
        ([0, 6], "points at padding"),
    ],
)
def test_refused_pointers(pointer, reason):
    model, (query, candidates) = make(), inputs(batch=1)
    mask = torch.tensor([[True] * 6 + [False]])
    with pytest.raises(InvalidPointer, match=reason):
        model(query, candidates, torch.tensor([pointer]), pool_mask=mask)
    with pytest.raises(InvalidPointer, match=reason):
        model.log_prob(query, candidates, torch.tensor([[pointer]]), torch.ones(1, 1, dtype=torch.bool), mask)
    # A masked candidate may hold anything.
    model.log_prob(query, candidates, torch.tensor([[pointer]]), torch.zeros(1, 1, dtype=torch.bool), mask)


def test_refused_inputs():
    model, (query, candidates) = make(), inputs()
    with pytest.raises(InvalidConfig, match="d_model of the selector is 12"):
        model(query[:, :5], candidates, shots=1)
    with pytest.raises(InvalidConfig, match="pool_mask"):
        model(query, candidates, shots=1, pool_mask=torch.ones(3, 7))
    with pytest.raises(InvalidConfig, match="has no candidate"):
        model(query, candidates, shots=1, pool_mask=torch.zeros(3, 7, dtype=torch.bool))
    with pytest.raises(InvalidConfig, match="shots: missing"):
        model(query, candidates)
    with pytest.raises(InvalidConfig, match="beam: 0"):
        model.select(query, candidates, 1, beam=0)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"d_model": 0}, "selector.d_model: 0"),
        ({"d_model": "8"}, "selector.d_model: '8'"),
        ({"num_heads": 3}, "must divide hidden_dim, which is 256"),
        ({"dropout": 1.0}, "selector.dropout: 1.0"),
        ({"temperature": 0.001}, "must be at least 0.02"),
        ({"temperature": float("nan")}, "selector.temperature"),
        ({"state_update": "gru"}, "is none of none, gate"),
        ({"num_layers": -1}, "selector.num_layers: -1, must be a whole number of at least 0"),
        ({"architecture": "recurrent"}, "selector.architecture: 'recurrent', is none of pointer, autoregressive"),
        ({"architecture": "autoregressive", "num_layers": 0}, "selector.num_layers: 0, must be a whole number of at least 1"),
        ({"architecture": "autoregressive", "state_update": "gate"}, "selector.state_update: 'gate', but an autoregressive"),
        ({"layers": 2}, "unknown field 'layers'"),
    ],
)
def test_refused_configurations(config, reason):
    with pytest.raises(InvalidConfig, match=reason):
        SelectorConfig.from_json({"d_model": 512, **config})
    assert SelectorConfig.from_json(SelectorConfig(512, dropout=0.5).to_json()) == SelectorConfig(512, dropout=0.5)
    with pytest.raises(InvalidConfig, match="d_model: missing"):
        SelectorConfig.from_json({})


def test_what_serves_needs_no_torch():
    code = (
        "import sys, leverplus.policies, leverplus.checkpoints, leverplus.pools, leverplus.embeddings\n"
        "bad = [m for m in ('torch', 'transformers', 'celery', 'sqlalchemy', 'PIL') if m in sys.modules]\n"
        "assert not bad, bad\n"
        "from leverplus.selector import PointerSelectorV3\n"
        "assert 'torch' in sys.modules and 'pydantic' not in sys.modules and 'fastapi' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_without_projecting_the_pool_is_the_same_gradients_too(heads: int) -> None:
    torch.manual_seed(heads)
    attention = torch.nn.MultiheadAttention(8, heads, batch_first=True, dtype=torch.float64)
    torch.nn.init.normal_(attention.in_proj_bias)
    torch.nn.init.normal_(attention.out_proj.bias)
    query, pool = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 8), (3, 5, 8)))
    pool_mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [False, True, False, False, False]])
    leaves = [query, pool, *attention.parameters()]
    stock = attention(query[:, None], pool, pool, key_padding_mask=~pool_mask, need_weights=False)[0][:, 0]
    ours = attend_to_pool(attention, query, pool, pool_mask)
    assert torch.allclose(ours, stock, atol=1e-12)
    direction = torch.randn_like(ours)
    expected = torch.autograd.grad((stock * direction).sum(), leaves)
    found = torch.autograd.grad((ours * direction).sum(), leaves)
    assert all(torch.allclose(one, other, atol=1e-12) for one, other in zip(found, expected, strict=True))


def test_attention_dropout_weighs_the_value_bias_too() -> None:
    torch.manual_seed(0)
    attention = torch.nn.MultiheadAttention(4, 1, dropout=0.5, batch_first=True, dtype=torch.float64)
    torch.nn.init.normal_(attention.in_proj_bias)
    query, pool = (torch.randn(*shape, dtype=torch.float64) for shape in ((1, 4), (1, 6, 4)))
    everywhere = torch.ones(1, 6, dtype=torch.bool)
    torch.manual_seed(1)
    found = attend_to_pool(attention, query, pool, everywhere)
    of_query, of_key, of_value = attention.in_proj_weight.chunk(3)
    query_bias, key_bias, value_bias = attention.in_proj_bias.chunk(3)
    scores = (of_query @ query[0] + query_bias) @ (pool[0] @ of_key.T + key_bias).T / 2
    torch.manual_seed(1)
    weights = torch.nn.functional.dropout(scores.softmax(0)[None, None], 0.5)[0, 0]
    assert not torch.isclose(weights.sum(), torch.ones((), dtype=torch.float64))
    expected = attention.out_proj(weights @ (pool[0] @ of_value.T + value_bias))
    assert torch.allclose(found[0], expected, atol=1e-12)
