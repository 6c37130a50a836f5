"""PointerSelectorV3 with the reference's parameter names, and the one place where a configuration becomes a model.

The query attends to its pool in `num_layers` rounds, each a multi-head attention followed by LayerNorm(attended + query);
candidates stay as they are. Without a round it is a bi-encoder. Query and candidates are projected and scaled to unit length;
a step's logits are their cosines over a temperature. With `state_update="gate"` each choice moves the query's state:
g = sigmoid(gate([state; chosen])), state = normalise(g * state + (1 - g) * chosen). With "residual" it is added to:
state = normalise(state + mlp([state; chosen; state * chosen])), and starts as if nothing were chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from leverplus.checkpoints import load_checkpoint
from leverplus.selector.attention import attend_to_pool
from leverplus.selector.autoregressive import AutoregressiveSelector
from leverplus.selector.base import Selector, near_identity
from leverplus.selector.config import FEED_FORWARD, SelectorConfig
from leverplus.selector.decoding import Encoded, State

AnySelector = TypeVar("AnySelector", bound=Selector)


class FeedForward(nn.Module):
    """down(dropout(silu(up(x)))), of which nothing comes before it is trained."""

    def __init__(self, given: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.up = nn.Linear(given, FEED_FORWARD * hidden)
        self.down = nn.Linear(FEED_FORWARD * hidden, hidden)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, vectors: Tensor) -> Tensor:
        return self.down(self.dropout(nn.functional.silu(self.up(vectors))))


class PointerSelectorV3(Selector):
    """The reference's selector; v1 of it where the configuration has no layers. `query_mlp` and the residual state are ours."""

    def __init__(self, config: SelectorConfig) -> None:
        super().__init__(config)
        hidden = config.hidden_dim
        self.cross_attn_layers = nn.ModuleList(
            nn.MultiheadAttention(hidden, config.num_heads, dropout=config.attn_dropout, batch_first=True)
            for _ in range(config.num_layers)
        )
        self.attn_norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(config.num_layers))
        self.query_proj = near_identity(hidden)
        self.cand_proj = near_identity(hidden)
        self.query_update_gate: nn.Linear | None = None
        if config.state_update == "gate":
            self.query_update_gate = nn.Linear(2 * hidden, hidden)
            nn.init.xavier_uniform_(self.query_update_gate.weight)
            nn.init.zeros_(self.query_update_gate.bias)
        self.query_norm = nn.LayerNorm(hidden) if config.query_mlp else None
        self.query_mlp = FeedForward(hidden, hidden, config.dropout) if config.query_mlp else None
        self.state_mlp = FeedForward(3 * hidden, hidden, config.dropout) if config.state_update == "residual" else None

    def read(self, query: Tensor, pool: Tensor, pool_mask: Tensor) -> Encoded:
        if self.query_norm is not None and self.query_mlp is not None:
            query = query + self.query_mlp(self.query_norm(query))
        for attention, norm in zip(self.cross_attn_layers, self.attn_norms, strict=True):
            query = norm(attend_to_pool(cast(nn.MultiheadAttention, attention), query, pool, pool_mask) + query)
        direction = self.direction(query).unsqueeze(1)
        keys = self.keys(pool)
        nothing = direction.new_empty(*direction.shape[:2], 0)
        return Encoded(State(direction, nothing), keys, keys, pool_mask, self.config.temperature)

    def advance(self, state: State, chosen: Tensor) -> State:
        if self.state_mlp is not None:
            seen = torch.cat([state.direction, chosen, state.direction * chosen], dim=-1)
            return State(nn.functional.normalize(state.direction + self.state_mlp(seen), dim=-1), state.memory)
        if self.query_update_gate is None:
            return state
        gate = torch.sigmoid(self.query_update_gate(torch.cat([state.direction, chosen], dim=-1)))
        moved = nn.functional.normalize(gate * state.direction + (1 - gate) * chosen, dim=-1)
        return State(moved, state.memory)


def new_selector(config: SelectorConfig) -> Selector:
    """A selector of the configuration's architecture, with fresh weights."""
    return AutoregressiveSelector(config) if config.architecture == "autoregressive" else PointerSelectorV3(config)


def selector_from_checkpoint(folder: Path) -> Selector:
    """The model of a checkpoint folder in eval mode; strict, see leverplus.checkpoints.load_checkpoint."""
    tensors, info = load_checkpoint(folder)
    return selector_from_tensors(tensors, info.selector_config)


def selector_from_tensors(tensors: Mapping[str, Any], config: SelectorConfig) -> Selector:
    """A model in eval mode with exactly these arrays or tensors, which are copied."""
    return with_tensors(new_selector(config), tensors)


def with_tensors(model: AnySelector, tensors: Mapping[str, Any]) -> AnySelector:
    """`model` in eval mode with exactly these arrays or tensors, which are copied."""
    model.load_state_dict({name: torch.as_tensor(tensor).detach().clone() for name, tensor in tensors.items()})
    return model.eval()
