"""What every selector does: it encodes a query with its pool once, then chooses, scores and samples pointers step by step.

A step's logits are the cosines of the state's direction and the candidates, over a temperature. How a query and its pool are
encoded, and what a choice does to the state, is the architecture's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from leverplus.errors import InvalidConfig, InvalidPointer
from leverplus.selector.config import CHOSEN_LOGIT, SelectorConfig
from leverplus.selector.decoding import Beams, Encoded, Samples, Selection, State, beam_search, greedy, sample

PADDING = -1
"""Ends a pointer that is shorter than its tensor."""


class Selector(nn.Module, ABC):
    """Pointers here are Positions in the pool, -1 pads a shorter one; log-probability 0 for the empty one.

    `input_proj` is shared by query and candidates; `query_proj` and `cand_proj` make what the cosines are taken of.
    """

    query_proj: nn.Linear
    cand_proj: nn.Linear

    def __init__(self, config: SelectorConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden_dim
        self.input_proj: nn.Module = nn.Identity() if config.d_model == hidden else nn.Linear(config.d_model, hidden, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    @abstractmethod
    def read(self, query: Tensor, pool: Tensor, pool_mask: Tensor) -> Encoded:
        """query [B, h] and pool [B, K, h] after the input projection, zeros where pool_mask [B, K] is False."""

    @abstractmethod
    def advance(self, state: State, chosen: Tensor) -> State:
        """State after `chosen` [B, W, h], rows of Encoded.inputs, was picked."""

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
        return self.read(self.input_proj(query), self.input_proj(candidates), pool_mask)

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
        pool = encoded.candidates.shape[1]
        state = encoded.state.repeated(count)
        taken = torch.zeros(batch, count, pool, dtype=torch.bool, device=pointers.device)
        transposed = encoded.candidates.transpose(1, 2)
        closed = ~encoded.open.unsqueeze(1)
        if not shots:
            return encoded.candidates.new_empty(batch, count, 0, pool)
        steps: list[Tensor] = []
        for step in range(shots):
            if step:
                before = pointers[:, :, step - 1 : step]
                ended = before == PADDING
                index = before.clamp(min=0)
                taken = taken.scatter(2, index, taken.gather(2, index) | ~ended)
                after = self.advance(state, encoded.chosen(index[:, :, 0]))
                state = State(torch.where(ended, state.direction, after.direction), after.memory)
            logits = state.direction @ transposed / encoded.temperature
            steps.append(logits.masked_fill(taken, CHOSEN_LOGIT).masked_fill(closed, float("-inf")))
        return torch.stack(steps, dim=2)

    @torch.no_grad()
    def select(self, query: Tensor, candidates: Tensor, shots: int, beam: int = 1, pool_mask: Tensor | None = None) -> Selection:
        """The best pointer of each query: greedy, or the first of `beam` beams. Dropout is off, as when served."""
        beams = self.select_beams(query, candidates, shots, beam, pool_mask)
        return Selection(beams.positions[:, 0], beams.step_logprobs[:, 0])

    @torch.no_grad()
    def select_beams(self, query: Tensor, candidates: Tensor, shots: int, beam: int, pool_mask: Tensor | None = None) -> Beams:
        """All beams of each query, best first."""
        with self._as_served():
            return beam_search(self.encode(query, candidates, pool_mask), self.advance, shots, beam)

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
        with self._as_served():
            encoded = self.encode(query, candidates, pool_mask)
            return sample(encoded, self.advance, shots, count=count, temperature=temperature, generator=generator)

    @contextmanager
    def _as_served(self) -> Generator[None]:
        training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(training)

    def tensors(self) -> dict[str, npt.NDArray[np.float32]]:
        """Copies of the state dict's tensors as float32 arrays, for a checkpoint or for leverplus.policies."""
        state = cast(dict[str, Tensor], self.state_dict())
        return {name: tensor.detach().to("cpu", torch.float32, copy=True).numpy() for name, tensor in state.items()}

    def direction(self, state: Tensor) -> Tensor:
        """What candidates are compared with: state [..., h] projected, of unit length."""
        return nn.functional.normalize(self.query_proj(self.dropout(state)), dim=-1)

    def keys(self, pool: Tensor) -> Tensor:
        """What a direction is compared with: pool [B, K, h] projected, of unit length."""
        return nn.functional.normalize(self.cand_proj(self.dropout(pool)), dim=-1)

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


def near_identity(width: int) -> nn.Linear:
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
