"""Steps of AdamW and their rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def learning_rate(progress: float, step: int, warm_up: int = 200, decay_from: float = 0.35) -> float:
    """Factor of the peak: a linear warm-up, a plateau, and a cosine to a hundredth over the rest. `progress` in 0 to 1."""
    down = max(0.0, (progress - decay_from) / (1 - decay_from))
    return min(1.0, (step + 1) / warm_up) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, down))))


class Steps:
    """`clipped` are the parameters whose gradient is kept to a norm of 1."""

    def __init__(self, parameters: Sequence[nn.Parameter], peak: float, clipped: Sequence[nn.Parameter] = ()) -> None:
        self.parameters, self.peak, self.clipped = parameters, peak, clipped
        fused = parameters[0].device.type == "cuda"
        self.adamw = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.95), weight_decay=0.05, fused=fused)

    def take(self, loss: Tensor, factor: float) -> None:
        """One step down the loss at `factor` of the peak rate."""
        for group in self.adamw.param_groups:
            group["lr"] = self.peak * factor
        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()
        if self.clipped:
            torch.nn.utils.clip_grad_norm_(self.clipped, 1.0)
        self.adamw.step()
