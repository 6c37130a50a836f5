"""PointerSelectorV3 with the reference's parameter names.

The query attends to its pool in `num_layers` rounds, each a multi-head attention followed by LayerNorm(attended + query);
candidates stay as they are. Query and candidates are projected and scaled to unit length; a step's logits are their
cosines over a temperature. With `state_update="gate"` each choice moves the query's state:
g = sigmoid(gate([state; chosen])), state = normalise(g * state + (1 - g) * chosen).

A query and its pool are encoded once, however many pointers are scored or searched.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from leverplus.checkpoints import load_checkpoint
from leverplus.errors import InvalidConfig, InvalidPointer
from leverplus.selector.attention import attend_to_pool
from leverplus.selector.config import CHOSEN_LOGIT, SelectorConfig
from leverplus.selector.decoding import Beams, Encoded, Samples, Selection, beam_search, greedy, sample

PADDING = -1
"""Ends a pointer that is shorter than its tensor."""


class PointerSelectorV3(nn.Module):
    """Pointers here are Positions in the pool, -1 pads a shorter one; log-probability 0 for the empty one."""

    def __init__(self, config: SelectorConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden_dim
        self.input_proj: nn.Module = nn.Identity() if config.d_model == hidden else nn.Linear(config.d_model, hidden, bias=False)
        self.cross_attn_layers = nn.ModuleList(
            nn.MultiheadAttention(hidden, config.num_heads, dropout=config.attn_dropout, batch_first=True)
            for _ in range(config.num_layers)
        )
        self.attn_norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(config.num_layers))
        self.query_proj = _near_identity(hidden)
        self.cand_proj = _near_identity(hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.query_update_gate: nn.Linear | None = None
        if config.state_update == "gate":
            self.query_update_gate = nn.Linear(2 * hidden, hidden)
            nn.init.xavier_uniform_(self.query_update_gate.weight)
            nn.init.zeros_(self.query_update_gate.bias)

    def encode(self, query: Tensor, candidates: Tensor, pool_mask: Tensor | None = None) -> Encoded:
        """query [B, d], candidates [B, K, d], pool_mask [B, K] bool, True where there is a candidate (None: everywhere).

        Raises InvalidConfig for shapes that do not fit the configuration and for a query without candidates.
        """
        self._check_shapes(query, candidates, pool_mask)
        if pool_mask is None:
            pool_mask = torch.ones(candidates.shape[:2], dtype=torch.bool, device=candidates.device)
        if not bool(pool_mask.any(dim=1).all()):
            raise InvalidConfig(field="pool_mask", reason="a query of the batch has no candidate")
        # Padding may hold anything, NaN too: a NaN times an attention weight of zero is NaN.
        candidates = candidates.masked_fill(~pool_mask.unsqueeze(2), 0.0)
        state = self.input_proj(query)
        keys = self.input_proj(candidates)
        for attention, norm in zip(self.cross_attn_layers, self.attn_norms, strict=True):
            state = norm(attend_to_pool(cast(nn.MultiheadAttention, attention), state, keys, pool_mask) + state)
        return Encoded(
            nn.functional.normalize(self.query_proj(self.dropout(state)), dim=-1),
            nn.functional.normalize(self.cand_proj(self.dropout(keys)), dim=-1),
            pool_mask,
            self.config.temperature,
        )

    def advance(self, state: Tensor, chosen: Tensor) -> Tensor:
        """State [..., h] after `chosen` [..., h] was picked."""
        if self.query_update_gate is None:
            return state
        gate = torch.sigmoid(self.query_update_gate(torch.cat([state, chosen], dim=-1)))
        return nn.functional.normalize(gate * state + (1 - gate) * chosen, dim=-1)

    def forward(
        self,
        query: Tensor,
        candidates: Tensor,
        pointers: Tensor | None = None,
        shots: int | None = None,
        pool_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, S, K] of each step: along `pointers` [B, S] (teacher forcing), or along the greedy choice.

        `shots` is the number of steps: needed without pointers, at most S with them. A chosen candidate has -100 in
        later steps, padding of the pool -inf in all. Steps past a pointer's end see the state that it ended in.
        """
        encoded = self.encode(query, candidates, pool_mask)
        if pointers is None:
            if shots is None:
                raise InvalidConfig(field="shots", reason="missing: needed where no pointers are given")
            pointers = greedy(encoded, self.advance, shots).positions
        elif shots is not None:
            if not 0 <= shots <= pointers.shape[1]:
                raise InvalidConfig(field="shots", reason=f"{shots}, the pointers have {pointers.shape[1]} places")
            pointers = pointers[:, :shots]
        return self.forced_logits(encoded, pointers.unsqueeze(1))[:, 0]

    def log_prob(
        self, query: Tensor, candidates: Tensor, pointers: Tensor, mask: Tensor, pool_mask: Tensor | None = None
    ) -> Tensor:
        """log pi of pointers [B, C, S] → [B, C], teacher-forced; 0 where mask [B, C] is False and for empty pointers."""
        encoded = self.encode(query, candidates, pool_mask)
        pointers = pointers.masked_fill(~mask.unsqueeze(2), PADDING)
        logprobs = torch.log_softmax(self.forced_logits(encoded, pointers), dim=-1)
        taken = logprobs.gather(3, pointers.clamp(min=0).unsqueeze(3)).squeeze(3)
        return taken.masked_fill(pointers == PADDING, 0.0).sum(dim=2)

    def forced_logits(self, encoded: Encoded, pointers: Tensor) -> Tensor:
        """pointers [B, C, S] → logits [B, C, S, K] of each step along them; see `forward`."""
        _check_pointers(pointers, encoded.open)
        batch, count, shots = pointers.shape
        pool, hidden = encoded.candidates.shape[1:]
        state = encoded.state.unsqueeze(1).expand(-1, count, -1)
        taken = torch.zeros(batch, count, pool, dtype=torch.bool, device=pointers.device)
        transposed = encoded.candidates.transpose(1, 2)
        closed = ~encoded.open.unsqueeze(1)
        if not shots:
            return encoded.candidates.new_empty(batch, count, 0, pool)
        steps: list[Tensor] = []
        for step in range(shots):
            logits = state @ transposed / encoded.temperature
            steps.append(logits.masked_fill(taken, CHOSEN_LOGIT).masked_fill(closed, float("-inf")))
            chosen = pointers[:, :, step : step + 1]
            ended = chosen == PADDING
            index = chosen.clamp(min=0)
            taken = taken.scatter(2, index, taken.gather(2, index) | ~ended)
            vectors = encoded.candidates.gather(1, index.expand(-1, -1, hidden))
            state = torch.where(ended, state, self.advance(state, vectors))
        return torch.stack(steps, dim=2)

    @torch.no_grad()
    def select(self, query: Tensor, candidates: Tensor, shots: int, beam: int = 1, pool_mask: Tensor | None = None) -> Selection:
        """The best pointer of each query: greedy, or the first of `beam` beams. Dropout is off, as when served."""
        beams = self.select_beams(query, candidates, shots, beam, pool_mask)
        return Selection(beams.positions[:, 0], beams.step_logprobs[:, 0])

    @torch.no_grad()
    def select_beams(self, query: Tensor, candidates: Tensor, shots: int, beam: int, pool_mask: Tensor | None = None) -> Beams:
        """All beams of each query, best first."""
        return beam_search(self._encode_as_served(query, candidates, pool_mask), self.advance, shots, beam)

    @torch.no_grad()
    def sample(
        self,
        query: Tensor,
        candidates: Tensor,
        shots: int,
        *,
        count: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        pool_mask: Tensor | None = None,
    ) -> Samples:
        """`count` pointers a query, drawn step by step from softmax(logits / temperature)."""
        encoded = self._encode_as_served(query, candidates, pool_mask)
        return sample(encoded, self.advance, shots, count=count, temperature=temperature, generator=generator)

    def _encode_as_served(self, query: Tensor, candidates: Tensor, pool_mask: Tensor | None) -> Encoded:
        training = self.training
        self.eval()
        try:
            return self.encode(query, candidates, pool_mask)
        finally:
            self.train(training)

    def tensors(self) -> dict[str, npt.NDArray[np.float32]]:
        """Copies of the state dict's tensors as float32 arrays, for a checkpoint or for leverplus.policies."""
        state = cast(dict[str, Tensor], self.state_dict())
        return {name: tensor.detach().to("cpu", torch.float32, copy=True).numpy() for name, tensor in state.items()}

    def _check_shapes(self, query: Tensor, candidates: Tensor, pool_mask: Tensor | None) -> None:
        batch, width = query.shape[0], self.config.d_model
        if query.shape != (batch, width) or candidates.ndim != 3 or candidates.shape[::2] != (batch, width):
            raise InvalidConfig(
                field="embeddings",
                reason=f"query {tuple(query.shape)} and candidates {tuple(candidates.shape)}, expected [B, {width}] and "
                f"[B, K, {width}]: d_model of the selector is {width}",
            )
        if pool_mask is not None and (pool_mask.shape != candidates.shape[:2] or pool_mask.dtype != torch.bool):
            raise InvalidConfig(
                field="pool_mask",
                reason=f"{pool_mask.dtype} {tuple(pool_mask.shape)}, expected bool {tuple(candidates.shape[:2])}",
            )


def selector_from_checkpoint(folder: Path) -> PointerSelectorV3:
    """The model of a checkpoint folder in eval mode; strict, see leverplus.checkpoints.load_checkpoint."""
    tensors, info = load_checkpoint(folder)
    return selector_from_tensors(tensors, info.selector_config)


def selector_from_tensors(
    tensors: dict[str, npt.NDArray[np.float32]] | dict[str, Any], config: SelectorConfig
) -> PointerSelectorV3:
    """A model in eval mode with exactly these tensors, which are copied."""
    model = PointerSelectorV3(config)
    model.load_state_dict({name: torch.as_tensor(tensor).detach().clone() for name, tensor in tensors.items()})
    return model.eval()


def _near_identity(width: int) -> nn.Linear:
    """A square projection that starts as the identity with noise of 0.01: cosines of the inputs, ties broken."""
    linear = nn.Linear(width, width, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(width) + 0.01 * torch.randn(width, width))
    return linear


def _check_pointers(pointers: Tensor, pool_open: Tensor) -> None:
    """Every position lies in its query's pool, none comes twice, and padding comes last; else InvalidPointer."""
    pool = pool_open.shape[1]
    if bool(((pointers < PADDING) | (pointers >= pool)).any()):
        worst = int(pointers.min()) if bool((pointers < PADDING).any()) else int(pointers.max())
        raise InvalidPointer(f"position {worst} is outside the pool, which has positions 0 to {pool - 1}")
    given = pointers != PADDING
    opened = pool_open.unsqueeze(1).expand(-1, pointers.shape[1], -1).gather(2, pointers.clamp(min=0))
    if bool((given & ~opened).any()):
        raise InvalidPointer("a position points at padding of its pool, not at a candidate")
    if bool((given[:, :, 1:] & ~given[:, :, :-1]).any()):
        raise InvalidPointer("padding (-1) comes before a position; it may only end a pointer")
    ordered = pointers.sort(dim=2).values
    if bool(((ordered[:, :, 1:] == ordered[:, :, :-1]) & (ordered[:, :, 1:] != PADDING)).any()):
        raise InvalidPointer("a position comes twice in one pointer")
