"""Multi-head attention of one query to its pool, without projecting the pool.

One query sees all of it, so the key projection moves to the query (k = Wkᵀ(Wq x + bq): the key's bias adds the same to every
score and cancels in the softmax) and the value projection behind the weighted sum (Σ w (Wv c + bv) = Wv Σ w c + bv Σ w). That is
exact for any number of heads and under dropout, and saves two K × h × h products a layer, forwards and backwards.
"""

from __future__ import annotations

import math

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
