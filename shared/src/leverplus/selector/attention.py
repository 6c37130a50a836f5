"""Attention of one vector: to the pool of its query, without projecting the pool, and to the tokens before it in a sequence.

One query sees all of its pool, so the key projection moves to the query (k = Wkᵀ(Wq x + bq): the key's bias adds the same to
every score and cancels in the softmax) and the value projection behind the weighted sum (Σ w (Wv c + bv) = Wv Σ w c + bv Σ w).
That is exact for any number of heads and under dropout, and saves two K × h × h products a layer, forwards and backwards.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def attend_to_pool(attention: nn.MultiheadAttention, query: Tensor, pool: Tensor, pool_mask: Tensor) -> Tensor:
    """What `attention` gives for query [B, h] with pool [B, K, h] as keys and values, where pool_mask [B, K] is True → [B, h]."""
    heads, width = attention.num_heads, attention.head_dim
    of_query, of_key, of_value = attention.in_proj_weight.chunk(3)
    query_bias, _, value_bias = attention.in_proj_bias.chunk(3)
    asked = nn.functional.linear(query, of_query, query_bias).unflatten(1, (heads, width)) / math.sqrt(width)
    # [H, B, w] · [H, w, h] → [B, H, h]
    folded = (asked.transpose(0, 1) @ of_key.unflatten(0, (heads, width))).transpose(0, 1)
    scores = (folded @ pool.transpose(1, 2)).masked_fill(~pool_mask[:, None], -math.inf)
    weights = nn.functional.dropout(scores.softmax(-1), attention.dropout, attention.training)
    pooled = weights @ pool
    values = (pooled.transpose(0, 1) @ of_value.unflatten(0, (heads, width)).transpose(1, 2)).transpose(0, 1)
    values = values + value_bias.unflatten(0, (heads, width)) * weights.sum(-1, keepdim=True)
    return attention.out_proj(values.flatten(1))


def decode_next(layer: nn.TransformerEncoderLayer, token: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
    """What a pre-norm `layer` under a causal mask gives for the next token of a sequence.

    token [..., h]; past [..., T, 2, h]: keys and values of the T tokens before it → (output [..., h], its own keys and
    values [..., 2, h]).
    """
    attention = layer.self_attn
    heads, width = attention.num_heads, attention.head_dim
    mixed = nn.functional.linear(layer.norm1(token), attention.in_proj_weight, attention.in_proj_bias)
    asked, own = mixed.unflatten(-1, (3, heads * width)).split((1, 2), dim=-2)
    # [..., T + 1, 2, H, w]
    known = torch.cat([past, own.unsqueeze(-3)], dim=-3).unflatten(-1, (heads, width))
    scores = torch.einsum("...hw,...thw->...ht", asked.squeeze(-2).unflatten(-1, (heads, width)), known[..., 0, :, :])
    weights = nn.functional.dropout((scores / math.sqrt(width)).softmax(-1), attention.dropout, attention.training)
    attended = torch.einsum("...ht,...thw->...hw", weights, known[..., 1, :, :]).flatten(-2)
    token = token + layer.dropout1(attention.out_proj(attended))
    inner = layer.linear1(layer.norm2(token))
    return token + layer.dropout2(layer.linear2(layer.dropout(layer.activation(inner)))), own
