"""The first phase: the vision tower learns to tell what its pictures show, before anything is asked in words."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from in_context_vlm import IGNORED, TOKENS_PER_IMAGE
from in_context_vlm.episodes import Mix
from in_context_vlm.forward import LayerwiseForward
from in_context_vlm.pictures import NAME_COUNTS
from in_context_vlm.sides import Side
from in_context_vlm.steps import Steps, learning_rate

ONLY_PICTURES = Mix(queries=(0.0, 0.0, 0.0, 0.7, 0.3))


class Seeing:
    """Linear heads on the mean of a picture's tokens that name what it shows; they teach the vision tower and are thrown away."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.heads = nn.ModuleList(nn.Linear(width, count) for count in NAME_COUNTS).to(device)

    def loss(self, pictures: Tensor, names: Tensor) -> Tensor:
        """pictures [N·4, d], names [N, 5] → the sum of the heads' cross-entropies."""
        losses = [
            cross_entropy(said.float(), names[:, i], ignore_index=IGNORED, reduction="sum")
            / (names[:, i] != IGNORED).sum().clamp(min=1)
            for i, said in enumerate(self._said(pictures, len(names)))
        ]
        return torch.stack(losses).sum()

    @torch.no_grad()
    def right(self, pictures: Tensor, names: Tensor) -> list[float]:
        """Share of right names of each head, among the pictures that have one."""
        shares: list[float] = []
        for i, said in enumerate(self._said(pictures, len(names))):
            told = names[:, i] != IGNORED
            shares.append(round(float((said.argmax(1) == names[:, i])[told].float().mean()), 4))
        return shares

    def _said(self, pictures: Tensor, count: int) -> list[Tensor]:
        pooled = pictures.view(count, TOKENS_PER_IMAGE, -1).float().mean(1)
        return [head(pooled) for head in self.heads]


def learn_to_see(
    forward: LayerwiseForward,
    plainly: LayerwiseForward,
    seeing: Seeing,
    training: Side,
    held_out: Side,
    arguments: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Trains the vision tower alone, on the names of what the pictures show; returns its curve."""
    steps = Steps([*forward.model.model.visual.parameters(), *seeing.heads.parameters()], arguments.lr)
    curve: list[dict[str, Any]] = []
    started = time.monotonic()
    for step in range(arguments.seeing_steps):
        items = training.source.random_items(arguments.seeing_batch, 0, ONLY_PICTURES)
        with torch.autocast(items.asked.device.type, torch.bfloat16):
            loss = seeing.loss(forward.see(training.pictures.patches(items, augment=True)), training.pictures.names(items))
        steps.take(loss, learning_rate(step / arguments.seeing_steps, step, decay_from=0.5))
        if (step + 1) % max(1, arguments.seeing_steps // 10) == 0:
            items = held_out.source.random_items(2048, 0, ONLY_PICTURES)
            with torch.no_grad(), torch.autocast(items.asked.device.type, torch.bfloat16):
                shown = plainly.see(held_out.pictures.patches(items, augment=False))
            point = {
                "step": step + 1,
                "seconds": round(time.monotonic() - started, 1),
                "loss": round(float(loss.detach()), 4),
                "right": seeing.right(shown, held_out.pictures.names(items)),
            }
            curve.append(point)
            print(json.dumps(point), flush=True)
    return curve
