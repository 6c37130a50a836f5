"""What stands between a transformer's matrix products, in one pass over memory each where the device has a compiler for it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

logger = logging.getLogger(__name__)


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


def elementwise(device: torch.device, dtype: torch.dtype) -> Elementwise:
    """Compiled on a GPU, which takes seconds, once a process; as they stand where that fails, and on a processor."""
    if device.type != "cuda":
        return Elementwise()
    compiled = Elementwise(torch.compile(gated, dynamic=True), torch.compile(rotated, dynamic=True))
    try:
        for rows in (2, 3):
            compiled.gated(torch.ones(rows, 16, device=device, dtype=dtype))
            compiled.rotated(*(torch.ones(rows, *shape, device=device, dtype=dtype) for shape in ((2, 16), (16,), (16,))))
    # torch names no class that all failures of a compiler, a driver or a missing C compiler have in common.
    except Exception as exc:  # noqa: BLE001
        logger.warning("torch.compile does not work on %s, scoring is slower without it: %s", device, " ".join(str(exc).split())[:300])
        return Elementwise()
    return compiled


def fused(*layers: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """One weight [Σ outputs, inputs] and bias for layers that read the same input; theirs become views of it, so nothing is held twice."""
    weight = torch.cat([layer.weight for layer in layers])
    bias = torch.cat([layer.bias for layer in layers]) if layers[0].bias is not None else None
    sizes = [layer.out_features for layer in layers]
    for layer, part in zip(layers, weight.split(sizes), strict=True):
        layer.weight = nn.Parameter(part, requires_grad=False)
    if bias is not None:
        for layer, part in zip(layers, bias.split(sizes), strict=True):
            layer.bias = nn.Parameter(part, requires_grad=False)
    return weight, bias
