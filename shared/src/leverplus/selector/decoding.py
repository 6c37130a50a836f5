"""Choosing positions step by step from an encoded pool: greedy and beam search, and sampling.

All of it runs on a whole batch of queries. A candidate that was chosen, and one that is padding, can never be chosen.
Ties go to the lower position (see TIE_TOLERANCE).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from leverplus.errors import InvalidConfig
from leverplus.selector.config import TIE_TOLERANCE

NEVER = float("-inf")


class State(NamedTuple):
    """What W pointers a query have come to: direction [B, W, h], of unit length, that the next candidate is compared with,
    and memory [B, W, m], whatever else the selector keeps of what it has read."""

    direction: Tensor
    memory: Tensor

    def rows(self, parent: Tensor) -> State:
        """parent [B, V] → the state of each pointer's parent."""
        return State(_rows(self.direction, parent), _rows(self.memory, parent))

    def repeated(self, count: int) -> State:
        """The one state of each query, `count` times."""
        return State(self.direction.expand(-1, count, -1), self.memory.expand(-1, count, -1))


Advance = Callable[[State, Tensor], State]
"""(state of W pointers, chosen [B, W, h]: rows of Encoded.inputs) → state after them."""


class Encoded(NamedTuple):
    """A query and its pool, ready for any number of steps.

    state: of one empty pointer a query · candidates [B, K, h], of unit length: what a direction is compared with · inputs
    [B, K, h]: what a state is told of a candidate that was chosen · open [B, K] bool: False is padding · temperature divides
    the cosines.
    """

    state: State
    candidates: Tensor
    inputs: Tensor
    open: Tensor
    temperature: float

    def chosen(self, positions: Tensor) -> Tensor:
        """positions [B, W] → [B, W, h], their rows of `inputs`."""
        return self.inputs.gather(1, positions.unsqueeze(2).expand(-1, -1, self.inputs.shape[2]))


class Selection(NamedTuple):
    """positions [B, S] int64 and step_logprobs [B, S]: log-probability of each choice given those before it."""

    positions: Tensor
    step_logprobs: Tensor

    @property
    def logprob(self) -> Tensor:
        """[B] log-probability of the pointer; 0 for the empty one."""
        return self.step_logprobs.sum(dim=-1)


class Beams(NamedTuple):
    """positions [B, W, S] and step_logprobs [B, W, S], the best first.

    Where a pool has fewer than W ordered choices the last beams are empty: positions -1, log-probabilities -inf.
    With S = 0 there is one pointer only, and W is 1.
    """

    positions: Tensor
    step_logprobs: Tensor

    @property
    def logprob(self) -> Tensor:
        """[B, W] log-probability of each pointer, -inf for an empty beam."""
        return self.step_logprobs.sum(dim=-1)


class Samples(NamedTuple):
    """positions [B, N, S]; log-probabilities [B, N, S] by the policy itself, and by the tempered one drawn from."""

    positions: Tensor
    step_logprobs: Tensor
    proposal_step_logprobs: Tensor


def check_shots(encoded: Encoded, shots: int) -> None:
    """InvalidConfig unless every pool has at least `shots` candidates."""
    smallest = int(encoded.open.sum(dim=1).min())
    if not 0 <= shots <= smallest:
        raise InvalidConfig(field="shots", reason=f"{shots}, the smallest pool of the batch has {smallest} candidates")


def step_logits(encoded: Encoded, direction: Tensor, taken: Tensor) -> Tensor:
    """direction [B, W, h], taken [B, W, K] bool → logits [B, W, K], -inf where nothing can be chosen."""
    logits = direction @ encoded.candidates.transpose(1, 2) / encoded.temperature
    return logits.masked_fill(taken | ~encoded.open.unsqueeze(1), NEVER)


def top_in_order(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` best of scores [B, N], best first, and the lower index among equals: (scores [B, count], indices)."""
    remaining = scores.clone()
    best: list[Tensor] = []
    for _ in range(count):
        highest = remaining.max(dim=1, keepdim=True).values
        index = (remaining >= highest - TIE_TOLERANCE).to(torch.int8).argmax(dim=1, keepdim=True)
        best.append(index)
        remaining.scatter_(1, index, NEVER)
    indices = torch.cat(best, dim=1)
    # Past the last index that can be had, the loop meets one again whose score it has struck out itself.
    repeated = torch.stack([(indices[:, :i] == indices[:, i : i + 1]).any(dim=1) for i in range(count)], dim=1)
    return scores.gather(1, indices).masked_fill(repeated, NEVER), indices


def beam_search(encoded: Encoded, advance: Advance, shots: int, beam: int) -> Beams:
    """The best `beam` pointers of length `shots` that a beam of that width finds; a beam of one is greedy search."""
    check_shots(encoded, shots)
    if beam < 1:
        raise InvalidConfig(field="beam", reason=f"{beam}, must be at least 1")
    batch, pool = encoded.open.shape
    device = encoded.open.device
    state = encoded.state
    taken = torch.zeros(batch, 1, pool, dtype=torch.bool, device=device)
    positions = torch.empty(batch, 1, 0, dtype=torch.long, device=device)
    steps = torch.empty(batch, 1, 0, dtype=encoded.candidates.dtype, device=device)
    for step in range(shots):
        if step:
            state = advance(state, encoded.chosen(positions[:, :, -1]))
        width = state.direction.shape[1]
        alive = steps.sum(dim=2, keepdim=True)
        logprobs = torch.log_softmax(step_logits(encoded, state.direction, taken), dim=-1)
        # An empty beam can be out of candidates; its NaN must not win.
        totals = (alive + logprobs).nan_to_num(nan=NEVER, neginf=NEVER)
        kept = min(beam, width * pool)
        scores, index = top_in_order(totals.reshape(batch, width * pool), kept)
        parent, position = index // pool, index % pool
        chosen_logprob = logprobs.reshape(batch, width * pool).gather(1, index)
        chosen_logprob = chosen_logprob.masked_fill(scores == NEVER, NEVER)
        positions = torch.cat([_rows(positions, parent), position.unsqueeze(2)], dim=2)
        steps = torch.cat([_rows(steps, parent), chosen_logprob.unsqueeze(2)], dim=2)
        taken = _rows(taken, parent).scatter(2, position.unsqueeze(2), True)
        state = state.rows(parent)
    missing = beam - positions.shape[1] if shots else 0
    positions = torch.nn.functional.pad(positions, (0, 0, 0, missing), value=-1)
    steps = torch.nn.functional.pad(steps, (0, 0, 0, missing), value=NEVER)
    empty = (steps == NEVER).any(dim=2, keepdim=True)
    return Beams(positions.masked_fill(empty, -1), steps.masked_fill(empty, NEVER))


def greedy(encoded: Encoded, advance: Advance, shots: int) -> Selection:
    """The best candidate at each step."""
    beams = beam_search(encoded, advance, shots, 1)
    return Selection(beams.positions[:, 0], beams.step_logprobs[:, 0])


def sample(
    encoded: Encoded,
    advance: Advance,
    shots: int,
    *,
    count: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Samples:
    """`count` independent pointers a query, each step drawn from softmax(logits / temperature) of what is left."""
    check_shots(encoded, shots)
    if temperature <= 0:
        raise InvalidConfig(field="temperature", reason=f"{temperature}, must be above 0")
    if count < 1:
        raise InvalidConfig(field="count", reason=f"{count}, must be at least 1")
    batch, pool = encoded.open.shape
    state = encoded.state.repeated(count)
    taken = torch.zeros(batch, count, pool, dtype=torch.bool, device=encoded.open.device)
    positions: list[Tensor] = []
    own: list[Tensor] = []
    proposal: list[Tensor] = []
    for step in range(shots):
        if step:
            state = advance(state, encoded.chosen(positions[-1][:, :, 0]))
        logits = step_logits(encoded, state.direction, taken)
        tempered = torch.log_softmax(logits / temperature, dim=-1)
        drawn = torch.multinomial(tempered.exp().reshape(batch * count, pool), 1, generator=generator)
        position = drawn.reshape(batch, count, 1)
        positions.append(position)
        own.append(torch.log_softmax(logits, dim=-1).gather(2, position))
        proposal.append(tempered.gather(2, position))
        taken = taken.scatter(2, position, True)
    if not shots:
        nothing = encoded.candidates.new_empty(batch, count, 0)
        return Samples(nothing.long(), nothing, nothing.clone())
    return Samples(torch.cat(positions, dim=2), torch.cat(own, dim=2), torch.cat(proposal, dim=2))


def _rows(values: Tensor, parent: Tensor) -> Tensor:
    """values [B, W, n], parent [B, V] → [B, V, n]: the row of each beam's parent."""
    return values.gather(1, parent.unsqueeze(2).expand(-1, -1, values.shape[2]))
