"""The second phase, in words: the whole model on episodes; what is watched, kept and resumed."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from in_context_vlm import IGNORED
from in_context_vlm.checks import CHECKS, SCORED, share_right
from in_context_vlm.episodes import Mix
from in_context_vlm.forward import LayerwiseForward, assert_same_as_stock
from in_context_vlm.pieces import select_labels
from in_context_vlm.seeing import Seeing, learn_to_see
from in_context_vlm.sides import Side
from in_context_vlm.steps import Steps, learning_rate

SHOTS_CYCLE = (4, 2, 1, 4, 3, 0, 2, 4)


@dataclass
class Progress:
    """How far a run is. `seeing_curve` is None until the first phase is over; `best` is the score of `best_state`."""

    step: int = 0
    seeing_curve: list[dict[str, Any]] | None = None
    curve: list[dict[str, Any]] = field(default_factory=list)
    best: float = -1.0
    best_state: dict[str, Tensor] = field(default_factory=dict)


class Training:
    """A run: the model, its optimizer, the generators, and how far it is. A checkpoint file holds all of that."""

    def __init__(self, model: Any, training: Side, held_out: Side, arguments: argparse.Namespace) -> None:
        self.model, self.training, self.held_out, self.arguments = model, training, held_out, arguments
        self.forward, self.plainly = LayerwiseForward(model, compiled=arguments.compile), LayerwiseForward(model)
        few = training.source.draw(2, 2, Mix())
        difference = assert_same_as_stock(self.plainly, few.ids, training.pictures.patches(few.items, augment=True))
        print(f"layerwise forward pass differs from the stock one by at most {difference:.1e}", flush=True)
        self.seeing = Seeing(model.config.text_config.hidden_size, model.device)
        parameters = list(model.parameters())
        self.steps = Steps([*parameters, *self.seeing.heads.parameters()], arguments.lr, clipped=parameters)
        self.progress = Progress()
        self.before, self.started = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Training time so far, that of the run which left the checkpoint included."""
        return self.before + time.monotonic() - self.started

    def run(self) -> Progress:
        """Until the steps or minutes are used up, from the checkpoint if there is one; leaves the best state in the model."""
        checkpoint: Path | None = self.arguments.checkpoint
        if checkpoint is not None and checkpoint.exists():
            self._load(checkpoint)
        progress, self.started = self.progress, time.monotonic()
        self.model.train()
        if progress.seeing_curve is None:
            progress.seeing_curve = learn_to_see(
                self.forward, self.plainly, self.seeing, self.training, self.held_out, self.arguments
            )
            self._save(checkpoint)
        reported, last_report, window = progress.step, time.monotonic(), torch.zeros((), device=self.model.device)
        is_over = bool(progress.curve) and self._is_over()
        while not is_over:
            factor = self._rate()
            window += self._one_step(factor)
            is_over = self._is_over()
            if not is_over and time.monotonic() - last_report < self.arguments.report_seconds:
                continue
            self._report(float(window) / (progress.step - reported), factor)
            self._save(checkpoint)
            window.zero_()
            reported, last_report = progress.step, time.monotonic()
        self.model.load_state_dict(progress.best_state)
        return progress

    def _is_over(self) -> bool:
        return self.progress.step >= self.arguments.steps or self.seconds > self.arguments.minutes * 60

    def _rate(self) -> float:
        step, minutes = self.progress.step, self.arguments.minutes
        return learning_rate(max(step / self.arguments.steps, self.seconds / (minutes * 60)), step)

    def _one_step(self, factor: float) -> Tensor:
        """Returns the loss on words."""
        shots = SHOTS_CYCLE[self.progress.step % len(SHOTS_CYCLE)]
        pictures = self.training.pictures
        episodes = self.training.source.draw(self.arguments.batch_size, shots, Mix())
        patches = pictures.patches(episodes.items, augment=True)
        places, targets = select_labels(episodes.ids, episodes.labels, episodes.owner, episodes.known, 2 * shots + 3)
        with torch.autocast(patches.device.type, torch.bfloat16):
            shown = self.forward.see(patches)
            hidden = self.forward.hidden(episodes.ids, shown)
            chosen = hidden.gather(1, places.clamp(min=0)[..., None].expand(-1, -1, hidden.shape[-1]))
            logits = self.model.lm_head(chosen)
        loss = cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)
        weight = self.arguments.seeing_weight
        total = loss + weight * self.seeing.loss(shown, pictures.names(episodes.items)) if weight else loss
        self.steps.take(total, factor)
        self.progress.step += 1
        return loss.detach()

    def _report(self, loss: float, factor: float) -> None:
        """Adds a point to the curve, and keeps the state if it is the best so far."""
        progress, seconds, size = self.progress, self.seconds, self.arguments.check_size
        self.model.eval()
        figures = {check.name: share_right(self.plainly, self.held_out, check, size) for check in CHECKS}
        self.model.train()
        point = {
            "step": progress.step,
            "seconds": round(seconds, 1),
            "loss": round(loss, 4),
            "rate": round(factor, 3),
            "right": {name: None if value is None else round(value, 4) for name, value in figures.items()},
        }
        progress.curve.append(point)
        print(json.dumps(point), flush=True)
        score = sum(figures[name] or 0.0 for name in SCORED)
        if score >= progress.best:
            progress.best = score
            progress.best_state = {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def _save(self, checkpoint: Path | None) -> None:
        if checkpoint is None:
            return
        partial = checkpoint.with_suffix(".partial")
        state = {
            "model": self.model.state_dict(),
            "seeing": self.seeing.heads.state_dict(),
            "optimizer": self.steps.adamw.state_dict(),
            "generators": [side.generator.get_state() for side in (self.training, self.held_out)],
            "seconds": self.seconds,
            "progress": vars(self.progress),
            "arguments": deciding(self.arguments),
        }
        torch.save(state, partial)
        partial.replace(checkpoint)

    def _load(self, checkpoint: Path) -> None:
        saved = torch.load(checkpoint, map_location=self.model.device, weights_only=True)
        refuse_other_arguments(checkpoint, saved["arguments"], deciding(self.arguments))
        self.model.load_state_dict(saved["model"])
        self.seeing.heads.load_state_dict(saved["seeing"])
        self.steps.adamw.load_state_dict(saved["optimizer"])
        for side, state in zip((self.training, self.held_out), saved["generators"], strict=True):
            side.generator.set_state(state.cpu())
        self.before, self.progress = saved["seconds"], Progress(**saved["progress"])


_FREE = ("out", "checkpoint", "init", "compile", "workers", "report_seconds")
"""Arguments that may differ between a run and the one that goes on with it."""


def deciding(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments that make a run what it is."""
    return {name: value for name, value in vars(arguments).items() if name not in _FREE}


def refuse_other_arguments(checkpoint: Path, saved: dict[str, Any], given: dict[str, Any]) -> None:
    """Ends the program, naming each argument that differs with both values."""
    names = [name for name in sorted(saved | given) if saved.get(name) != given.get(name)]
    if names:
        found = "; ".join(f"{name} {saved.get(name)} there, {given.get(name)} here" for name in names)
        raise SystemExit(f"error: {checkpoint} is of another run: {found}. Give the same arguments, or another --checkpoint")
