"""The probability with which a selector draws a pointer at a temperature."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leverplus.selector import Selector
from leverplus.selector.config import CHOSEN_LOGIT
from leverplus.selector.decoding import Encoded


@torch.no_grad()
def tempered_logprobs(selector: Selector, encoded: Encoded, pointers: Tensor, temperatures: Sequence[float]) -> Tensor:
    """pointers [B, C, S] → [B, C, T] float64: log-probability under softmax(logits / temperature), as `Selector.sample` draws."""
    logits = selector.forced_logits(encoded, pointers)
    # Sampling leaves chosen candidates out; at a high temperature -100 would not.
    logits = logits.masked_fill(logits <= CHOSEN_LOGIT, float("-inf")).double()
    columns = [
        torch.log_softmax(logits / temperature, dim=-1).gather(3, pointers.unsqueeze(3)).squeeze(3).sum(dim=2)
        for temperature in temperatures
    ]
    return torch.stack(columns, dim=2)
