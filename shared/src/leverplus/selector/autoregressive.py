"""AutoregressiveSelector: a causal decoder over demonstrations (Lever-LM; the reference's v0).

It reads [beginning, query, demonstration 1, demonstration 2, …], each an embedding after the input projection plus one for its
place. What it makes of the newest token, projected to unit length, is compared with the pool: the next demonstration. Places
in the pool have no embedding, so that the order of a pool does not matter; that of what was chosen does.

Nothing is read twice: a state remembers keys and values of every token before. Query and beginning are read once, however many
pointers go on from them, and the pool is projected once.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from leverplus.errors import InvalidConfig
from leverplus.selector.attention import decode_next
from leverplus.selector.base import Selector, near_identity
from leverplus.selector.config import FEED_FORWARD, POSITIONS, SelectorConfig
from leverplus.selector.decoding import Encoded, State


class AutoregressiveSelector(Selector):
    """Layers are torch's TransformerEncoderLayer, pre-norm, GELU as its tanh approximation; read a token at a time."""

    def __init__(self, config: SelectorConfig) -> None:
        super().__init__(config)
        hidden = config.hidden_dim
        self.beginning = nn.Parameter(torch.zeros(hidden))
        self.position_embeddings = nn.Embedding(POSITIONS, hidden)
        nn.init.normal_(self.position_embeddings.weight, std=0.02)
        self.decoder_layers = nn.ModuleList(_layer(config) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(hidden)
        self.query_proj = near_identity(hidden)
        self.cand_proj = near_identity(hidden)

    def read(self, query: Tensor, pool: Tensor, pool_mask: Tensor) -> Encoded:
        query = query.unsqueeze(1)
        nothing = query.new_empty(*query.shape[:2], 0)
        begun = self._next(nothing, self.beginning.expand_as(query))
        return Encoded(self._next(begun.memory, query), self.keys(pool), pool, pool_mask, self.config.temperature)

    def advance(self, state: State, chosen: Tensor) -> State:
        """See Selector; InvalidConfig past the last place that the decoder knows."""
        return self._next(state.memory, chosen)

    def _next(self, memory: Tensor, token: Tensor) -> State:
        """State after one more token [B, W, h]; memory [B, W, m] of those before it: token, layer, key and value."""
        layers, hidden = self.config.num_layers, self.config.hidden_dim
        place = memory.shape[-1] // (layers * 2 * hidden)
        if place == POSITIONS:
            raise InvalidConfig(field="shots", reason=f"an autoregressive selector has places for at most {POSITIONS - 1}")
        past = memory.unflatten(-1, (place, layers, 2, hidden))
        token = token + self.position_embeddings.weight[place]
        read: list[Tensor] = []
        for index, layer in enumerate(self.decoder_layers):
            token, own = decode_next(cast(nn.TransformerEncoderLayer, layer), token, past[..., index, :, :])
            read.append(own)
        memory = torch.cat([memory, torch.stack(read, dim=-3).flatten(-3)], dim=-1)
        return State(self.direction(self.final_norm(token)), memory)


def _layer(config: SelectorConfig) -> nn.TransformerEncoderLayer:
    layer = nn.TransformerEncoderLayer(
        config.hidden_dim,
        config.num_heads,
        FEED_FORWARD * config.hidden_dim,
        config.dropout,
        nn.GELU("tanh"),
        batch_first=True,
        norm_first=True,
    )
    layer.self_attn.dropout = config.attn_dropout
    return layer
