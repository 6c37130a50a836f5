"""How likely a model is to reply with given answers, by teacher forcing.

P(answer | prompt) = exp(mean log-probability of the answer's tokens), each behind the prompt and the answer's tokens before it.
The answer's text stands where the reply begins, behind the same tokens from which answers are generated; the token that ends a
reply is not counted. Some models begin a reply with a space, as an answer stands in a demonstration, some without: P is that of
the likelier of the two spellings. Because of the mean, the P of different answers may sum up to more than 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from vqa_scorer.engines.decoding import Advance
from vqa_scorer.engines.prefixes import EncodedPrompt


class Read(Protocol):
    """Prompts -> logits [B, V] behind each, and what goes on from there: at most `rows` rows a prompt, `steps` tokens each."""

    def __call__(self, prompts: Sequence[EncodedPrompt], *, rows: int, steps: int) -> tuple[Tensor, Advance]: ...


_ROWS_A_PROMPT = 4
"""The answers of a batch of prompts go on side by side, at most so many times as many rows as a batch has prompts."""


def spellings(answer: str) -> tuple[str, str]:
    """The ways an answer may stand at the beginning of a reply."""
    return answer, f" {answer}"


def answer_probabilities(
    read: Read, prompts: Sequence[EncodedPrompt], replies: Sequence[Sequence[Sequence[Sequence[int]]]], *, batch_size: int
) -> list[list[float]]:
    """P of each answer of each prompt, in their order: `replies[prompt][answer]` are the token ids of its spellings.

    Each prompt is read once, at most `batch_size` of similar length together. ValueError for a spelling without tokens,
    ArithmeticError where the model's logits are no numbers.
    """
    found: list[list[float]] = [[] for _ in prompts]
    rows = [[spelling for answer in own for spelling in answer] for own in replies]
    for chosen in _batches(prompts, [len(own) for own in rows], batch_size):
        most = max(len(rows[index]) for index in chosen)
        longest = max((len(tokens) for index in chosen for tokens in rows[index]), default=1)
        logits, advance = read([prompts[index] for index in chosen], rows=most, steps=longest - 1)
        for index, known in zip(chosen, _forced(logits, advance, [rows[index] for index in chosen]), strict=True):
            of_spellings = iter(known)
            found[index] = [max(next(of_spellings) for _ in answer) for answer in replies[index]]
    return found


def _batches(prompts: Sequence[EncodedPrompt], rows: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    batch: list[int] = []
    for index in sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True):
        if batch and (len(batch) == batch_size or sum(rows[one] for one in [*batch, index]) > batch_size * _ROWS_A_PROMPT):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@torch.inference_mode()
def _forced(logits: Tensor, advance: Advance, rows: Sequence[Sequence[Sequence[int]]]) -> list[list[float]]:
    """exp(mean log-probability) of token sequences: `rows[b]` go on behind the first logits [B, V] of row b."""
    sequences = [tokens for own in rows for tokens in own]
    if not all(sequences):
        raise ValueError("an answer has no token, so it has no probability")
    parent = [row for row, own in enumerate(rows) for _ in own]
    totals = [0.0] * len(sequences)
    going_on = list(range(len(sequences)))
    step = 0
    while going_on:
        here = torch.tensor(parent, device=logits.device)
        tokens = torch.tensor([sequences[index][step] for index in going_on], device=logits.device)
        log_probs = torch.log_softmax(logits.float(), dim=-1)[here, tokens].tolist()
        for index, value in zip(going_on, log_probs, strict=True):
            totals[index] += value
        step += 1
        kept = [place for place, index in enumerate(going_on) if len(sequences[index]) > step]
        if kept:
            logits = advance(tokens[kept], here[kept])
        going_on = [going_on[place] for place in kept]
        parent = list(range(len(kept)))
    if not all(map(math.isfinite, totals)):
        raise ArithmeticError("the model gave a log-probability that is no finite number")
    means = iter(math.exp(total / len(tokens)) for total, tokens in zip(totals, sequences, strict=True))
    return [[next(means) for _ in own] for own in rows]
