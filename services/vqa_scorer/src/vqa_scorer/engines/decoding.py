"""Greedy and beam search over a model's logits, token for token as transformers' `generate` decides them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

Advance = Callable[[Tensor, Tensor], Tensor]
"""tokens [R] and the row [R] that each continues -> logits [R, V] behind them. Row numbers are those of the call before."""


@dataclass(frozen=True)
class GenerationArguments:
    """How an answer is decoded. `num_beams` 1 is greedy; `length_penalty` counts with more beams only."""

    max_new_tokens: int = 5
    num_beams: int = 1
    length_penalty: float = 0.0

    def fingerprint(self) -> dict[str, Any]:
        values = asdict(self)
        return values if self.num_beams > 1 else {**values, "length_penalty": None}


_NEVER = -1.0e9
"""Added to a score to take it out of a choice; what `generate` adds."""


def greedy_search(logits: Tensor, advance: Advance, *, stop_tokens: Tensor, max_new_tokens: int) -> list[list[int]]:
    """The likeliest token at each step, from the first logits [B, V]; without the token that ended a row.

    ArithmeticError where logits are no finite numbers.
    """
    rows = torch.arange(len(logits), device=logits.device)
    ended = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    written: list[Tensor] = []
    sound = torch.ones((), dtype=torch.bool, device=logits.device)
    while True:
        best, token = logits.max(dim=-1)
        sound = sound & best.isfinite().all()
        ended = ended | torch.isin(token, stop_tokens)
        written.append(torch.where(ended, -1, token))
        if len(written) == max_new_tokens or bool(ended.all()):
            _require_numbers(sound)
            return [[token for token in row if token >= 0] for row in torch.stack(written, dim=1).tolist()]
        logits = advance(token, rows)


def beam_search(
    logits: Tensor, advance: Advance, *, beams: int, length_penalty: float, stop_tokens: Tensor, max_new_tokens: int
) -> list[list[int]]:
    """The best of `beams` hypotheses by Σ log-prob / length ** length_penalty, from the first logits [B, V].

    A row stops when its best running hypothesis can no longer beat its worst finished one at the length reached
    (transformers' `early_stopping=False`). Each step looks at more continuations than beams, so that hypotheses which end
    leave enough to go on with. ArithmeticError where logits are no finite numbers.
    """
    batch, vocabulary = logits.shape
    device = logits.device
    considered = max(2, 1 + len(stop_tokens)) * beams
    is_top = torch.arange(considered, device=device) < beams
    scores = torch.zeros(batch, beams, device=device)
    # all beams begin alike: only the first may be continued at the first step
    scores[:, 1:] = _NEVER
    tokens = torch.zeros(batch, beams, 0, dtype=torch.long, device=device)
    finished_scores = torch.full((batch, beams), _NEVER, device=device)
    finished = torch.full((batch, beams, max_new_tokens), -1, device=device)
    is_finished = torch.zeros(batch, beams, dtype=torch.bool, device=device)
    improvable = torch.ones(batch, 1, dtype=torch.bool, device=device)
    first_row = torch.arange(batch, device=device)[:, None]
    sound = torch.ones((), dtype=torch.bool, device=device)
    logits = logits[:, None].expand(-1, beams, -1)
    for length in range(1, max_new_tokens + 1):
        log_probs = torch.log_softmax(logits.float(), dim=-1) + scores[:, :, None]
        top, places = torch.topk(log_probs.reshape(batch, -1), considered)
        sound = sound & top[:, 0].isfinite().all()
        parent, token = places // vocabulary, places % vocabulary
        continued = torch.cat([_gather(tokens, parent), token[:, :, None]], dim=2)
        ends = torch.isin(token, stop_tokens) | (length == max_new_tokens)

        candidate = top / length**length_penalty + (~improvable) * _NEVER + ~(ends & is_top) * _NEVER
        padded = torch.nn.functional.pad(continued, (0, max_new_tokens - length), value=-1)
        finished_scores, best = torch.topk(torch.cat([finished_scores, candidate], dim=1), beams)
        finished = _gather(torch.cat([finished, padded], dim=1), best)
        is_finished = torch.cat([is_finished, ends & is_top], dim=1).gather(1, best)

        scores, going_on = torch.topk(top + ends * _NEVER, beams)
        worst = torch.where(is_finished, finished_scores.amin(dim=1, keepdim=True), _NEVER)
        improvable = improvable & (scores[:, :1] / length**length_penalty > worst).any(dim=1, keepdim=True)
        if not bool(improvable.any()) or bool(ends.all()):
            break
        tokens, parent, token = _gather(continued, going_on), parent.gather(1, going_on), token.gather(1, going_on)
        # the prefill has one row a prompt, every later step one a beam
        rows = first_row.expand_as(parent) if length == 1 else first_row * beams + parent
        logits = advance(token.flatten(), rows.flatten()).unflatten(0, (batch, beams))
    _require_numbers(sound)
    stop = set(stop_tokens.tolist())
    return [[token for token in row if token >= 0 and token not in stop] for row in finished[:, 0].tolist()]


def _require_numbers(sound: Tensor) -> None:
    if not bool(sound):
        raise ArithmeticError("the model gave logits that are no finite numbers: broken weights, or an overflow in this dtype")


def _gather(values: Tensor, index: Tensor) -> Tensor:
    """values [B, N, L] at index [B, M] -> [B, M, L]"""
    return values.gather(1, index[:, :, None].expand(-1, -1, values.shape[2]))
