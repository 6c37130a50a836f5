"""What a training run needs to go on after an epoch, in one file: safetensors, with JSON in its header.

A run continues only the state of a run that was to do the very same thing: any other is told and left alone. So what a job
ends with is always what one undisturbed run gives, on the CPU to the last bit.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from leverplus.files import Fence, atomic_file

FORMAT = "leverplus-training-state-1"
_HEADER = "training_state"
_FILES = "state-*.safetensors"


@dataclass
class TrainingState:
    """A run as it stands after an epoch; the run changes it as it goes on.

    `phase`: the phase under way; `epoch`, `step`: its finished epochs and optimiser steps. `rows`: all rows of metrics.jsonl.
    `best`: phase -> the row of its best epoch so far; a phase without one is missing. `tensors`: group -> name -> tensor:
    `model`, `optimizer` and `random` are filled by `capture`, `best-<phase>` (the weights of its best epoch) by `keep_best`; a
    phase may keep further groups, and in `values` what is JSON. The order of the data and the weights that a phase begins with
    are no part of it: they follow from the config's seed, the epoch and the best epoch of the phase before.
    """

    phase: str = ""
    epoch: int = 0
    step: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    best: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict[str, dict[str, Tensor]])
    values: dict[str, Any] = field(default_factory=dict[str, Any])

    def begin(self, phase: str) -> None:
        """Nothing of this phase is done yet; what the phases before left stays."""
        self.phase, self.epoch, self.step = phase, 0, 0

    def rows_of_phase(self) -> list[dict[str, Any]]:
        """The rows of the phase under way, the one before its first epoch among them."""
        return [row for row in self.rows if row["phase"] == self.phase]

    def capture(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Copies weights, optimiser and torch's random states, the one that dropout draws from among them."""
        saved = optimizer.state_dict()
        self.tensors["model"] = _copies(model.state_dict())
        self.tensors["optimizer"] = {
            f"{index}.{name}": tensor.detach().cpu().clone()
            for index, slots in saved["state"].items()
            for name, tensor in slots.items()
        }
        self.values["optimizer"] = saved["param_groups"]
        self.tensors["random"] = {"cpu": torch.get_rng_state()}
        if (device := _device(model)).type == "cuda":
            self.tensors["random"]["cuda"] = torch.cuda.get_rng_state(device)

    def keep_best(self) -> None:
        """The newest epoch is the best so far of its phase."""
        self.best[self.phase] = self.rows[-1]
        self.tensors[f"best-{self.phase}"] = _copies(self.tensors["model"])

    def best_weights(self, phase: str) -> dict[str, Tensor]:
        """The weights of the best epoch of a phase that has one."""
        return self.tensors[f"best-{phase}"]

    def restore(self, model: torch.nn.Module) -> None:
        """Puts weights and random states back."""
        model.load_state_dict(self.tensors["model"])
        torch.set_rng_state(self.tensors["random"]["cpu"])
        if (device := _device(model)).type == "cuda":
            torch.cuda.set_rng_state(self.tensors["random"]["cuda"], device)

    def restore_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Puts back what the optimiser of the phase under way had gathered."""
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in self.tensors.get("optimizer", {}).items():  # none before the first step
            index, _, slot = name.partition(".")
            slots.setdefault(int(index), {})[slot] = tensor
        optimizer.load_state_dict({"state": slots, "param_groups": self.values["optimizer"]})


class StateFolder:
    """The states in a run directory. Run n of a job writes state-n.safetensors alone, so that a worker that was thought dead
    and comes back can never overwrite what a later run wrote; `fence` keeps it from writing at all."""

    def __init__(self, folder: Path, run: int, identity: Mapping[str, Any], *, fence: Fence, logger: logging.Logger) -> None:
        """`identity`: all that the run's result depends on, in JSON types."""
        self._folder = folder
        self._run = run
        # Through JSON, as the one that it is compared with: tuples are lists there.
        self._identity: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **identity}))
        self._fence = fence
        self._logger = logger

    def newest(self) -> TrainingState | None:
        """The state of the latest run that left one, to go on from; None, told in the log, where it cannot be."""
        for path in sorted(self._folder.glob(_FILES), key=_run_of, reverse=True):
            try:
                identity, state = _read(path)
            except (SafetensorError, OSError, ValueError, KeyError, TypeError) as exc:
                self._logger.warning("%s cannot be read and is passed over: %s: %s", path.name, type(exc).__name__, exc)
                continue
            if identity == self._identity:
                return state
            differing = sorted(name for name in identity | self._identity if identity.get(name) != self._identity.get(name))
            self._logger.warning("starts anew: %s was left by a run with another %s", path.name, ", ".join(differing))
            return None
        return None

    def save(self, state: TrainingState) -> None:
        """Writes the state whole or not at all, then removes those of earlier runs. Raises what the fence raises."""
        header = {
            "identity": self._identity,
            **{name: getattr(state, name) for name in ("phase", "epoch", "step", "rows", "best", "values")},
        }
        tensors = {f"{group}/{name}": tensor for group, named in state.tensors.items() for name, tensor in named.items()}
        with atomic_file(self._folder / f"state-{self._run}.safetensors", fence=self._fence) as stream:
            stream.write(save(tensors, {_HEADER: json.dumps(header)}))
        for path in self._folder.glob(_FILES):
            if _run_of(path) < self._run:
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Deletes this run's state and those of earlier ones: there is nothing left to do."""
        for path in self._folder.glob(_FILES):
            if _run_of(path) <= self._run:
                path.unlink(missing_ok=True)


def _read(path: Path) -> tuple[dict[str, Any], TrainingState]:
    with safe_open(path, framework="pt") as file:
        header: dict[str, Any] = json.loads(file.metadata()[_HEADER])
        tensors: dict[str, dict[str, Tensor]] = {}
        for name in list(file.keys()):
            group, _, rest = name.partition("/")
            tensors.setdefault(group, {})[rest] = file.get_tensor(name).clone()
    return header.pop("identity"), TrainingState(**header, tensors=tensors)


def _run_of(path: Path) -> int:
    number = path.stem.removeprefix("state-")
    return int(number) if number.isdecimal() else 0


def _copies(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}


def _device(model: torch.nn.Module) -> torch.device:
    return cast(Tensor, next(iter(model.parameters()))).device
