"""The autoregressive selector against torch's own layers over whole sequences, and against values worked out by hand."""

import pytest
import torch

from leverplus.errors import InvalidConfig
from leverplus.selector import AutoregressiveSelector, SelectorConfig, autoregressive, tensor_shapes
from leverplus.selector.config import POSITIONS

torch.set_num_threads(1)

ORDERS = torch.tensor([[[4, 0, 2, 5], [1, 3, 0, 4], [6, 5, 4, 3]]] * 3)
HALF = 0.5**0.5


def make(seed=0, **config):
    torch.manual_seed(seed)
    settings = {"d_model": 12, "hidden_dim": 8, "num_heads": 2, "num_layers": 2, **config}
    model = AutoregressiveSelector(SelectorConfig(**settings, architecture="autoregressive")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def inputs(batch=3, pool=7, d=12, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, d, generator=generator), torch.randn(batch, pool, d, generator=generator)


def logits_of_whole_sequence(model, query, pool, pointer):
    """[S, K] for one query [d] and pool [K, d]: the stock layers read all tokens at once under a causal mask."""
    demonstrations = [model.input_proj(pool[position]) for position in pointer[:-1]]
    tokens = torch.stack([model.beginning, model.input_proj(query), *demonstrations])
    tokens = tokens + model.position_embeddings.weight[: len(tokens)]
    mask = torch.nn.Transformer.generate_square_subsequent_mask(len(tokens))
    for layer in model.decoder_layers:
        tokens = layer(tokens[None], src_mask=mask)[0]
    states = torch.nn.functional.normalize(model.query_proj(model.final_norm(tokens[1:])), dim=-1)
    keys = torch.nn.functional.normalize(model.cand_proj(model.input_proj(pool)), dim=-1)
    logits = states @ keys.T / model.config.temperature
    for step in range(1, len(pointer)):
        logits[step, pointer[:step]] = -100.0
    return logits


@pytest.mark.parametrize("shots", [1, 2, 3, 4])
@pytest.mark.parametrize("settings", [{}, {"num_layers": 1, "num_heads": 1}, {"d_model": 8, "num_heads": 4, "temperature": 0.3}])
def test_logits_are_those_of_stock_layers_over_the_whole_sequence(shots, settings):
    model = make(**settings)
    query, pool = inputs(d=model.config.d_model)
    pointers = ORDERS[:, :, :shots]
    logits = model.forced_logits(model.encode(query, pool), pointers)
    logprobs = model.log_prob(query, pool, pointers, torch.ones(3, 3, dtype=torch.bool))
    for b in range(3):
        for c in range(3):
            pointer = pointers[b, c].tolist()
            expected = logits_of_whole_sequence(model, query[b], pool[b], pointer)
            torch.testing.assert_close(logits[b, c], expected, atol=1e-5, rtol=1e-5)
            steps = expected.log_softmax(-1)[torch.arange(shots), pointer]
            torch.testing.assert_close(logprobs[b, c], steps.sum(), atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_stock_layers_over_the_whole_sequence():
    model = make().double()
    query, pool = (tensor.double().requires_grad_() for tensor in inputs(batch=1))
    pointer = [4, 0, 2, 5]
    leaves = [query, pool, *model.parameters()]
    found = model(query, pool, torch.tensor([pointer])).log_softmax(-1)[0, torch.arange(4), pointer].sum()
    expected = logits_of_whole_sequence(model, query[0], pool[0], pointer).log_softmax(-1)[torch.arange(4), pointer].sum()
    for one, other in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-8)
        assert one.abs().sum() > 0


def test_steps_by_hand():
    """Two dimensions, one layer without feed-forward, keys of zero: attention is ten times the mean of LayerNorm of all tokens.

    LayerNorm makes (-1, 1) or (1, -1) of every vector here, and zero of the beginning.
    """
    model = AutoregressiveSelector(SelectorConfig(2, 2, architecture="autoregressive")).eval()
    (layer,) = model.decoder_layers
    with torch.no_grad():
        for parameter in (
            model.position_embeddings.weight,
            layer.self_attn.in_proj_weight,
            layer.linear2.weight,
            layer.linear2.bias,
        ):
            parameter.zero_()
        layer.self_attn.in_proj_weight[4:].copy_(torch.eye(2))
        layer.self_attn.out_proj.weight.copy_(10 * torch.eye(2))
        model.query_proj.weight.copy_(torch.eye(2))
        model.cand_proj.weight.copy_(torch.eye(2))
    query = torch.tensor([[1.0, 3.0]])
    pool = torch.tensor([[[0.0, 5.0], [2.0, 1.0], [1.0, -1.0], [-4.0, 0.0]]])
    logits = model(query, pool, torch.tensor([[1, 0, 2]]))
    # Query: (1, 3) + 10 · (0 + (-1, 1))/2 = (-4, 8). After (2, 1): (2, 1) + 10 · (0 + (-1, 1) + (1, -1))/3 = (2, 1).
    # After (0, 5): (0, 5) + 10 · (-1, 1)/4 = (-2.5, 7.5). Directions: (-1, 1), (1, -1), (-1, 1), each over sqrt 2.
    cosines = torch.tensor([HALF, -(5**-0.5) * HALF, -1, HALF])
    torch.testing.assert_close(logits[0, 0], 10 * cosines)
    torch.testing.assert_close(logits[0, 1], torch.tensor([-10 * HALF, -100, 10, -10 * HALF]))
    torch.testing.assert_close(logits[0, 2], torch.tensor([-100, -100, -10, 10 * HALF]))
    # The other way round, (0, 5) stays at (-1, 1), and what was read before turns (2, 1) there: (2, 1) + 10 · (-1, 1)/4.
    again = model(query, pool, torch.tensor([[0, 1, 2]]))
    torch.testing.assert_close(again[0, 1], torch.tensor([-100, 10 * cosines[1].item(), -10, 10 * HALF]))
    torch.testing.assert_close(again[0, 2], torch.tensor([-100, -100, -10, 10 * HALF]))


def test_a_later_demonstration_changes_no_earlier_step():
    model, (query, pool) = make(), inputs()
    first = model(query, pool, torch.tensor([[2, 5, 1, 0]] * 3))
    second = model(query, pool, torch.tensor([[2, 5, 6, 3]] * 3))
    assert torch.equal(first[:, :3], second[:, :3])
    assert not torch.allclose(first[:, 3, 4], second[:, 3, 4])


def test_the_order_of_what_was_chosen_matters():
    model, (query, pool) = make(), inputs()
    one, other = (model(query, pool, torch.tensor([pointer] * 3))[:, 2] for pointer in ([2, 5, 0], [5, 2, 0]))
    assert (one - other).abs().max() > 1e-3


def test_a_query_and_its_pool_are_read_once(monkeypatch):
    """4 shots of 50 pointers: two tokens a query, then three a pointer, in each of two layers."""
    model, (query, pool) = make(), inputs()
    read: list[torch.Size] = []
    true_step = autoregressive.decode_next

    def watched(layer, token, past):
        read.append(token.shape[:2])
        return true_step(layer, token, past)

    monkeypatch.setattr(autoregressive, "decode_next", watched)
    pointers = torch.stack([torch.randperm(7)[:4] for _ in range(150)]).view(3, 50, 4)
    model.log_prob(query, pool, pointers, torch.ones(3, 50, dtype=torch.bool))
    assert read == [(3, 1)] * 4 + [(3, 50)] * 6


def test_a_pointer_that_has_ended_stays_in_its_state():
    model, (query, pool) = make(), inputs()
    logits = model(query, pool, torch.tensor([[3, 1, -1, -1]] * 3))
    longer = model(query, pool, torch.tensor([[3, 1, 0, 2]] * 3))
    torch.testing.assert_close(logits[:, 2], longer[:, 2])
    assert torch.equal(logits[:, 3], logits[:, 2])


def test_the_pool_is_exhausted_and_then_refused():
    model, (query, pool) = make(), inputs(pool=4)
    assert model.select(query, pool, 4).positions.sort().values.tolist() == [[0, 1, 2, 3]] * 3
    with pytest.raises(InvalidConfig, match="5, the smallest pool of the batch has 4 candidates"):
        model.select(query, pool, 5)


def test_more_demonstrations_than_it_has_places_for_are_refused():
    model, (query, pool) = make(), inputs()
    pointer = torch.tensor([[0, 1, 2, 3, 4]] * 3)
    for choose in (
        lambda: model.select(query, pool, 5),
        lambda: model.sample(query, pool, 5, count=2),
        lambda: model(query, pool, pointer),
    ):
        with pytest.raises(InvalidConfig, match="shots: an autoregressive selector has places for at most 4"):
            choose()


def test_tensors_and_size():
    config = SelectorConfig(512, num_heads=4, num_layers=2, architecture="autoregressive")
    model = AutoregressiveSelector(config)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == tensor_shapes(config)
    layer = 12 * 256 * 256 + 13 * 256
    around = 512 * 256 + 2 * 256 * 256 + (1 + POSITIONS + 2) * 256
    assert sum(parameter.numel() for parameter in model.parameters()) == 2 * layer + around
    assert POSITIONS == 5
