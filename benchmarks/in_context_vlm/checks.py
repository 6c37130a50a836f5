"""Figures to watch while training: fresh episodes of one kind each, with pictures that are not trained on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from in_context_vlm.episodes import Mix
from in_context_vlm.forward import LayerwiseForward
from in_context_vlm.pieces import EASY, FIRST_WORD, RESULT, SECOND_WORD
from in_context_vlm.sides import Side

_ONLY_NAMING, _ONLY_PAIR = (1.0, 0.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0, 0.0)
_ONLY_OPERATION, _ONLY_PLAIN, _ONLY_EASY = (0.0, 0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Check:
    """A figure to watch. `bearing`: only episodes where so many demonstrations bear on the query; None: the knowable ones."""

    name: str
    shots: int
    mix: Mix
    bearing: int | None = None


CHECKS = (
    *(Check(f"one relevant of {n}", n, Mix(queries=_ONLY_NAMING, relevant=1.0, alike=0.0), 1) for n in (1, 2, 4)),
    *(Check(f"one relevant of {n}, others alike", n, Mix(queries=_ONLY_NAMING, relevant=1.0, alike=1.0), 1) for n in (2, 4)),
    Check("none relevant of 2", 2, Mix(queries=_ONLY_NAMING, relevant=0.0, alike=0.0), 0),
    Check("pair of 2", 2, Mix(queries=_ONLY_PAIR, relevant=1.0, alike=0.0)),
    Check("pair of 4", 4, Mix(queries=_ONLY_PAIR, relevant=1.0, alike=0.5)),
    Check("operation of 2", 2, Mix(queries=_ONLY_OPERATION, relevant=1.0, alike=0.0)),
    Check("plain of 0", 0, Mix(queries=_ONLY_PLAIN)),
    Check("plain of 2", 2, Mix(queries=_ONLY_PLAIN, alike=0.5)),
    Check("easy-vqa of 0", 0, Mix(queries=_ONLY_EASY)),
)
SCORED = (
    "one relevant of 1",
    "one relevant of 2",
    "one relevant of 4",
    "pair of 2",
    "operation of 2",
    "plain of 0",
    "easy-vqa of 0",
)
"""Their mean decides which state is kept."""


@torch.no_grad()
def share_right(forward: LayerwiseForward, held_out: Side, check: Check, count: int) -> float | None:
    """Share of fresh episodes whose whole answer is the likeliest, token by token; None where no episode fits the check."""
    episodes = held_out.source.draw(count, check.shots, check.mix)
    query = episodes.owner == check.shots
    row = torch.arange(count, device=query.device)[:, None]
    answer = query & (episodes.labels > 0) & (episodes.ids != forward.model.config.text_config.eos_token_id)
    if check.bearing is None:
        meanings = torch.tensor([FIRST_WORD, SECOND_WORD, RESULT, EASY], device=query.device)
        counted = torch.isin(episodes.labels, meanings) & query
        fits = (episodes.known[row, episodes.owner.clamp(min=0), episodes.labels] | ~counted).all(1)
    else:
        fits = episodes.bearing.sum(1) == check.bearing
    if not bool(fits.any()):
        return None
    with torch.autocast(query.device.type, torch.bfloat16):
        logits = forward(episodes.ids, held_out.pictures.patches(episodes.items, augment=False))
    said = logits[:, :-1].argmax(-1)
    right = ((said == episodes.ids[:, 1:]) | ~answer[:, 1:]).all(1)
    return float(right[fits].float().mean())
