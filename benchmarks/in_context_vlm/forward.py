"""The forward pass for training: transformers' modules on batches of equal pictures, run layer by layer as pure functions.

One attention serves all pictures where the stock code calls it once a picture, and positions are worked out for a whole batch at
once. Each kind of layer is compiled once and serves all layers of its kind. `assert_same_as_stock` compares the whole with
transformers' own pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, scaled_dot_product_attention, silu

from in_context_vlm import PATCHES_PER_IMAGE, TOKENS_PER_IMAGE


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


class LayerwiseForward:
    """Logits or hidden states of a batch whose prompts hold the same number of 56×56 pictures."""

    def __init__(self, model: Any, *, compiled: bool = False) -> None:
        self.model: Any = model  # torch types every submodule as Tensor or Module
        self.image_token = int(model.config.image_token_id)
        self.rotary = self._rotary_of_one_image()
        self.text_layer: Callable[..., Tensor] = torch.compile(text_layer, dynamic=True) if compiled else text_layer
        self.vision_layer: Callable[..., Tensor] = torch.compile(vision_layer, dynamic=True) if compiled else vision_layer
        self.sections = list(model.config.text_config.rope_parameters["mrope_section"])

    def __call__(self, ids: Tensor, patches: Tensor) -> Tensor:
        """ids [B, L] padded right, patches [B·images·16, 1176] → logits [B, L, V]."""
        return self.model.lm_head(self.hidden(ids, self.see(patches)))

    def see(self, patches: Tensor) -> Tensor:
        """Patches [images·16, 1176] → what the text layers are shown of the pictures [images·4, d]."""
        vision = self.model.model.visual
        cos, sin = self.rotary
        # the patch convolution covers each patch once, which is a matrix product
        kernel = vision.patch_embed.proj.weight.flatten(1)
        hidden = linear(patches, kernel).float().view(-1, PATCHES_PER_IMAGE, len(kernel))
        for block in vision.blocks:
            hidden = self.vision_layer(hidden, cos.float(), sin.float(), block.attn.num_heads, vision_weights(block))
        merger = vision.merger
        normed = rms_norm(hidden, merger.ln_q.weight, 1e-6).reshape(-1, merger.hidden_size)
        first, last = merger.mlp[0], merger.mlp[2]
        return linear(gelu(linear(normed, first.weight, first.bias)), last.weight, last.bias)

    def hidden(self, ids: Tensor, pictures: Tensor) -> Tensor:
        """ids [B, L] padded right, pictures as `see` gives them → the last hidden states [B, L, d]."""
        language = self.model.model.language_model
        hidden = language.embed_tokens(ids)
        at_image = (ids == self.image_token)[..., None].expand_as(hidden)
        hidden = hidden.masked_scatter(at_image, pictures.to(hidden.dtype))
        cos, sin = self._text_rotary(ids)
        heads = self.model.config.text_config.num_attention_heads
        # padding lies right of every answer, so the causal mask alone hides it
        for layer in language.layers:
            hidden = self.text_layer(hidden, cos, sin, heads, text_weights(layer))
        return rms_norm(hidden, language.norm.weight, 1e-5)

    def positions(self, ids: Tensor) -> Tensor:
        """M-RoPE positions [3, B, L]: a text token advances all axes by 1; a picture's 2×2 tokens span two of them."""
        image = ids == self.image_token
        index = (image.cumsum(1) - 1) % TOKENS_PER_IMAGE
        advance = torch.where(image, torch.where(index == TOKENS_PER_IMAGE - 1, 2, 0), 1)
        base = advance.cumsum(1) - advance
        row, column = torch.where(image, index // 2, 0), torch.where(image, index % 2, 0)
        return torch.stack([base, base + row, base + column])

    def _text_rotary(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [B, 1, L, head] with each section of frequencies on its own axis."""
        inverse = self.model.model.language_model.rotary_emb.inv_freq
        angles = self.positions(ids)[..., None].float() * inverse  # [3, B, L, half]
        half = torch.cat([part[axis] for axis, part in enumerate(angles.split(self.sections, -1))], -1)
        whole = torch.cat([half, half], -1)[:, None]
        return whole.cos(), whole.sin()

    def _rotary_of_one_image(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines [16, head_dim] that the stock vision tower gives the patches of one 56×56 picture."""
        vision = self.model.model.visual
        seen: list[tuple[Tensor, Tensor]] = []

        def keep(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
            seen.append(kwargs["position_embeddings"])

        hook = vision.blocks[0].register_forward_pre_hook(keep, with_kwargs=True)
        with torch.no_grad():
            vision(torch.zeros(PATCHES_PER_IMAGE, 1176, device=vision.device), grid_thw=one_grid(1, vision.device))
        hook.remove()
        return seen[0]


def one_grid(images: int, device: torch.device | str) -> Tensor:
    """image_grid_thw [images, 3] of 56×56 pictures."""
    return torch.tensor([[1, 4, 4]], device=device).expand(images, 3)


@torch.no_grad()
def assert_same_as_stock(forward: LayerwiseForward, ids: Tensor, patches: Tensor) -> float:
    """Largest difference of float32 logits between the two passes; raises where positions or logits disagree."""
    model = forward.model
    was_training = model.training
    model.eval()
    image = (ids == forward.image_token).long()
    grid = one_grid(len(patches) // PATCHES_PER_IMAGE, ids.device)
    everything = torch.ones_like(ids)
    expected, _ = model.model.get_rope_index(ids, mm_token_type_ids=image, image_grid_thw=grid, attention_mask=everything)
    if not torch.equal(expected.to(ids.device), forward.positions(ids)):
        raise AssertionError("the batched M-RoPE positions differ from get_rope_index")
    stock = model(
        input_ids=ids, attention_mask=everything, pixel_values=patches, image_grid_thw=grid, mm_token_type_ids=image
    ).logits
    difference = float((stock - forward(ids, patches)).abs().max())
    if difference > 1e-3:
        raise AssertionError(f"the layerwise forward pass differs from the stock one by {difference}")
    model.train(was_training)
    return difference
