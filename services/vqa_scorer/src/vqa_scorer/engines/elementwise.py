"""What stands between a transformer's matrix products, in one pass over memory each where the device has a compiler for it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, nn
from torch._dynamo import maybe_mark_dynamic  # pyright: ignore[reportPrivateUsage]
from torch.nn.functional import silu

logger = logging.getLogger(__name__)

_FEW_ROWS = 1024
"""Below that, checking whether compiled code fits takes longer than what it saves."""


def gated(gate_and_up: Tensor) -> Tensor:
    """SwiGLU of [rows, 2 · width], gates first (Shazeer, arXiv 2002.05202) → [rows, width]"""
    gate, up = gate_and_up.chunk(2, dim=-1)
    return silu(gate) * up


def rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (RoFormer, arXiv 2104.09864) of heads [rows, heads, width] by cos and sin [rows, width].

    Computed in float32, whatever the dtype.
    """
    values = heads.float()
    first, second = values.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (values * cos.float()[:, None] + turned * sin.float()[:, None]).to(heads.dtype)


@dataclass(frozen=True)
class Elementwise:
    """`gated` and `rotated`, as they are fastest on one device."""

    gated: Callable[[Tensor], Tensor] = gated
    rotated: Callable[[Tensor, Tensor, Tensor], Tensor] = rotated


@lru_cache
def elementwise(device: torch.device, dtype: torch.dtype) -> Elementwise:
    """Compiled on a GPU, which takes seconds, once a process; as they stand where that fails, and on a processor."""
    if device.type != "cuda":
        return Elementwise()
    compiled = Elementwise(_compiled(gated), _compiled(rotated))
    try:
        compiled.gated(torch.ones(_FEW_ROWS, 16, device=device, dtype=dtype))
        compiled.rotated(*(torch.ones(_FEW_ROWS, *shape, device=device, dtype=dtype) for shape in ((2, 16), (16,), (16,))))
    # torch names no class that all failures of a compiler, a driver or a missing C compiler have in common.
    except Exception as exc:  # noqa: BLE001
        said = " ".join(str(exc).split())[:300]
        logger.warning("torch.compile does not work on %s, scoring is slower without it: %s", device, said)
        return Elementwise()
    return compiled


def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """For any number of rows. Widths are compiled in: kernels that only know them at run time reach half the memory's rate."""
    compiled = torch.compile(function, dynamic=False)

    def call(*given: Tensor) -> Tensor:
        if len(given[0]) < _FEW_ROWS:
            return function(*given)
        for tensor in given:
            maybe_mark_dynamic(tensor, 0)
        return compiled(*given)

    return call


def fused(*layers: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """One weight [Σ outputs, inputs] and bias for layers that read the same input.

    Theirs become views of it, so that nothing is held twice.
    """
    weight = torch.cat([layer.weight for layer in layers])
    biases = [bias for layer in layers if (bias := cast("Tensor | None", layer.bias)) is not None]
    bias = torch.cat(biases) if biases else None
    sizes = [layer.out_features for layer in layers]
    for layer, part in zip(layers, weight.split(sizes), strict=True):
        layer.weight = nn.Parameter(part, requires_grad=False)
    if bias is not None:
        for layer, part in zip(layers, bias.split(sizes), strict=True):
            layer.bias = nn.Parameter(part, requires_grad=False)
    return weight, bias
