"""Packed attention against the plain formula, sequence by sequence."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vqa_scorer.engines.attention import Spans, attend
from vqa_scorer.engines.elementwise import fused, gated, rotated


def plain(query: Tensor, key: Tensor, value: Tensor, lengths: list[tuple[int, int]], *, causal: bool) -> Tensor:
    """softmax(q · k / √width) · v one query after the other."""
    group = query.shape[1] // key.shape[1]
    rows: list[Tensor] = []
    asked = known = 0
    for queries, keys in lengths:
        for place in range(queries):
            seen = known + (keys - queries + place + 1 if causal else keys)
            heads = [
                torch.softmax(key[known:seen, head // group] @ query[asked + place, head] / math.sqrt(query.shape[2]), 0)
                @ value[known:seen, head // group]
                for head in range(query.shape[1])
            ]
            rows.append(torch.stack(heads))
        asked, known = asked + queries, known + keys
    return torch.stack(rows)


sequences = st.lists(
    st.tuples(st.integers(1, 5), st.integers(0, 6)).map(lambda pair: (pair[0], sum(pair))), min_size=1, max_size=7
)


@settings(max_examples=60)
@given(lengths=sequences, causal=st.booleans(), key_heads=st.sampled_from([1, 2]), seed=st.integers(0, 99))
def test_packed_attention_is_the_formula(lengths: list[tuple[int, int]], causal: bool, key_heads: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    queries, keys = (sum(part) for part in zip(*lengths, strict=True))
    query = torch.randn(queries, 2, 4, generator=draw)
    key, value = (torch.randn(keys, key_heads, 4, generator=draw) for _ in range(2))
    spans = Spans([one for one, _ in lengths], [two for _, two in lengths], torch.device("cpu"), causal=causal)
    expected = plain(query, key, value, lengths, causal=causal)
    assert torch.allclose(attend(query, key, value, spans), expected, atol=1e-5)


def test_sequences_of_like_length_share_a_call() -> None:
    spans = Spans([10, 10, 2, 9], [10, 10, 2, 9], torch.device("cpu"), causal=False)
    assert [bucket.queries.tolist() for bucket in spans.buckets] == [
        [[20, 21]],
        [[*range(22, 31), 30], [*range(10)], [*range(10, 20)]],
    ]
    assert spans.query_bounds.tolist() == [0, 10, 20, 22, 31]
    seen = spans.buckets[1].seen
    assert seen is not None
    assert seen[0, 0, 0].tolist() == [True] * 9 + [False]
    assert spans.buckets[0].seen is None


@pytest.mark.parametrize("rows", [1, 3])
def test_gates_come_first(rows: int) -> None:
    values = torch.tensor([[0.0, 2.0, 5.0, 3.0]]).expand(rows, -1)
    assert gated(values)[0].tolist() == pytest.approx([0.0, 3 * 2 / (1 + math.exp(-2))])


def test_a_quarter_turn_takes_the_first_half_to_the_second() -> None:
    heads = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    cos, sin = torch.zeros(1, 4), torch.ones(1, 4)
    assert rotated(heads, cos, sin).tolist() == [[[-3.0, -4.0, 1.0, 2.0]]]
    assert rotated(heads, sin, cos).tolist() == heads.tolist()


def test_fused_layers_share_memory_with_their_parts() -> None:
    layers = [torch.nn.Linear(2, size) for size in (3, 1)]
    values = torch.randn(4, 2)
    apart = torch.cat([layer(values) for layer in layers], dim=1)
    weight, bias = fused(*layers)
    assert torch.allclose(torch.nn.functional.linear(values, weight, bias), apart)
    assert layers[1].weight.data_ptr() == weight[3:].data_ptr()
    assert torch.allclose(torch.cat([layer(values) for layer in layers], dim=1), apart)
