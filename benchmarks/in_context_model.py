"""The in-context VLM's forward pass and optimizer for training: transformers' modules, run layer by layer as pure functions.

Each kind of layer is compiled once and serves all layers of its kind. `assert_same_as_stock` of small_vlm_model compares the
whole with transformers' own pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from small_vlm_data import PATCHES_PER_IMAGE
from small_vlm_model import FastForward
from torch import Tensor
from torch.nn.functional import gelu, linear, scaled_dot_product_attention, silu


def rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    values = hidden.float()
    return weight * (values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + epsilon))


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """states [B, heads, L, d]; cos and sin broadcast against it."""
    low, high = states.float().chunk(2, -1)
    return (states.float() * cos + torch.cat([-high, low], -1) * sin).to(states.dtype)


def text_layer(hidden: Tensor, cos: Tensor, sin: Tensor, heads: int, w: tuple[Tensor, ...]) -> Tensor:
    """hidden [B, L, d], cos and sin [B, 1, L, head]; `w` as `text_weights` lists them."""
    norm_1, q_w, q_b, k_w, k_b, v_w, v_b, out_w, norm_2, gate_w, up_w, down_w = w
    batch, length, width = hidden.shape
    size = width // heads
    normed = rms_norm(hidden, norm_1, 1e-5)
    query, key, value = (
        linear(normed, weight, bias).view(batch, length, -1, size).transpose(1, 2)
        for weight, bias in ((q_w, q_b), (k_w, k_b), (v_w, v_b))
    )
    query, key = rotate(query, cos, sin), rotate(key, cos, sin)
    repeat = heads // key.shape[1]
    key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    mixed = scaled_dot_product_attention(query, key, value, is_causal=True)
    hidden = hidden + linear(mixed.transpose(1, 2).reshape(batch, length, width), out_w)
    normed = rms_norm(hidden, norm_2, 1e-5)
    return hidden + linear(silu(linear(normed, gate_w)) * linear(normed, up_w), down_w)


def vision_layer(hidden: Tensor, cos: Tensor, sin: Tensor, heads: int, w: tuple[Tensor, ...]) -> Tensor:
    """hidden [images, 16, d], cos and sin [16, head]; `w` as `vision_weights` lists them."""
    norm_1, qkv_w, qkv_b, out_w, out_b, norm_2, gate_w, gate_b, up_w, up_b, down_w, down_b = w
    images, patches, width = hidden.shape
    joined = linear(rms_norm(hidden, norm_1, 1e-6), qkv_w, qkv_b).view(images, patches, 3, heads, -1)
    query, key, value = joined.permute(2, 0, 3, 1, 4).unbind(0)
    mixed = scaled_dot_product_attention(rotate(query, cos, sin), rotate(key, cos, sin), value)
    hidden = hidden + linear(mixed.transpose(1, 2).reshape(images, patches, width), out_w, out_b)
    normed = rms_norm(hidden, norm_2, 1e-6)
    return hidden + linear(silu(linear(normed, gate_w, gate_b)) * linear(normed, up_w, up_b), down_w, down_b)


def text_weights(layer: Any) -> tuple[Tensor, ...]:
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    return (
        layer.input_layernorm.weight,
        *(part for projection in projections for part in (projection.weight, projection.bias)),
        attention.o_proj.weight,
        layer.post_attention_layernorm.weight,
        mlp.gate_proj.weight,
        mlp.up_proj.weight,
        mlp.down_proj.weight,
    )


def vision_weights(block: Any) -> tuple[Tensor, ...]:
    modules = (block.attn.qkv, block.attn.proj, block.mlp.gate_proj, block.mlp.up_proj, block.mlp.down_proj)
    qkv, out, gate, up, down = ((module.weight, module.bias) for module in modules)
    return (block.norm1.weight, *qkv, *out, block.norm2.weight, *gate, *up, *down)


class LayerwiseForward(FastForward):
    """As FastForward, and hidden states instead of logits where those of few tokens are wanted."""

    def __init__(self, model: Any, *, compiled: bool = False) -> None:
        super().__init__(model)
        self.text_layer: Callable[..., Tensor] = torch.compile(text_layer, dynamic=True) if compiled else text_layer
        self.vision_layer: Callable[..., Tensor] = torch.compile(vision_layer, dynamic=True) if compiled else vision_layer
        self.sections = list(model.config.text_config.rope_parameters["mrope_section"])

    def __call__(self, ids: Tensor, patches: Tensor) -> Tensor:
        return self.model.lm_head(self.hidden(ids, self.see(patches))[0])

    def see(self, patches: Tensor) -> Tensor:
        """Patches [images·16, 1176] → what the text layers are shown of the pictures [images·4, d]."""
        return self._encode(patches)

    def hidden(self, ids: Tensor, pictures: Tensor, tap: int = 0) -> tuple[Tensor, Tensor]:
        """ids [B, L] padded right, pictures as `see` gives them → hidden states [B, L, d]: last, and after `tap` layers."""
        language = self.model.model.language_model
        hidden = language.embed_tokens(ids)
        pictures = pictures.to(hidden.dtype)
        at_image = (ids == self.image_token)[..., None].expand_as(hidden)
        hidden = hidden.masked_scatter(at_image, pictures)
        cos, sin = self._text_rotary(ids)
        heads = self.model.config.text_config.num_attention_heads
        tapped = hidden
        for number, layer in enumerate(language.layers, 1):
            hidden = self.text_layer(hidden, cos, sin, heads, text_weights(layer))
            tapped = hidden if number == tap else tapped
        return rms_norm(hidden, language.norm.weight, 1e-5), tapped

    def _text_rotary(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [B, 1, L, head] with each section of frequencies on its own axis."""
        inverse = self.model.model.language_model.rotary_emb.inv_freq
        angles = self.positions(ids)[..., None].float() * inverse  # [3, B, L, half]
        half = torch.cat([part[axis] for axis, part in enumerate(angles.split(self.sections, -1))], -1)
        whole = torch.cat([half, half], -1)[:, None]
        return whole.cos(), whole.sin()

    def _encode(self, patches: Tensor) -> Tensor:
        vision = self.model.model.visual
        cos, sin = self.rotary
        hidden = linear(patches, vision.patch_embed.proj.weight.flatten(1)).float().view(-1, PATCHES_PER_IMAGE, 128)
        for block in vision.blocks:
            hidden = self.vision_layer(hidden, cos.float(), sin.float(), block.attn.num_heads, vision_weights(block))
        merger = vision.merger
        normed = rms_norm(hidden, merger.ln_q.weight, 1e-6).reshape(-1, merger.hidden_size)
        first, last = merger.mlp[0], merger.mlp[2]
        return linear(gelu(linear(normed, first.weight, first.bias)), last.weight, last.bias)


class Muon:
    """Momentum made orthogonal (Jordan et al. 2024), for matrices; those of one shape take their step together."""

    def __init__(self, matrices: list[Tensor], momentum: float = 0.95) -> None:
        self.momentum = momentum
        shapes = sorted({tuple(matrix.shape) for matrix in matrices})
        self.groups = [[matrix for matrix in matrices if tuple(matrix.shape) == shape] for shape in shapes]
        self.velocity = [torch.zeros(len(group), *group[0].shape, device=group[0].device) for group in self.groups]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """`rate` is the step's spectral norm on a square or wide matrix."""
        for group, velocity in zip(self.groups, self.velocity, strict=True):
            gradient = torch.stack([matrix.grad for matrix in group if matrix.grad is not None])
            velocity.lerp_(gradient, 1 - self.momentum)
            update = orthogonal(gradient.lerp(velocity, self.momentum))
            scale = rate * max(1.0, group[0].shape[0] / group[0].shape[1]) ** 0.5
            torch._foreach_add_(group, list(update.float().unbind(0)), alpha=-scale)


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest (semi-)orthogonal matrices [N, r, c], roughly: a quintic Newton-Schulz iteration in bf16."""
    x = matrices.bfloat16()
    if tall := x.shape[1] > x.shape[2]:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x
