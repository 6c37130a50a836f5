"""The small VLM's shape, and its forward pass for training.

The model is transformers' own Qwen2_5_VLForConditionalGeneration. The pass below runs the same modules in the same order on
batches of equal pictures: one attention for all pictures where the stock code calls it once a picture, and positions worked out
for a whole batch at once. `assert_same_as_stock` compares the two.
"""

from __future__ import annotations

from typing import Any

import torch
from small_tokenizer import IMAGE_PAD, TURN_END, VIDEO_PAD, VISION_END, VISION_START
from small_vlm_data import PATCHES_PER_IMAGE, TOKENS_PER_IMAGE
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision


def small_config(
    tokenizer: Any, *, layers: int = 6, intermediate: int = 768, key_value_heads: int = 4, vision_layers: int = 4
) -> Qwen2_5_VLConfig:
    """About 6 million parameters: text layers of width 256, vision layers of width 128."""
    ids = {
        name: tokenizer.convert_tokens_to_ids(token)
        for name, token in {
            "image_token_id": IMAGE_PAD,
            "video_token_id": VIDEO_PAD,
            "vision_start_token_id": VISION_START,
            "vision_end_token_id": VISION_END,
        }.items()
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 256,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": key_value_heads,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0},
        "bos_token_id": None,
        "eos_token_id": tokenizer.convert_tokens_to_ids(TURN_END),
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    }
    vision = {
        "depth": vision_layers,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_heads": 4,
        "out_hidden_size": 256,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": list(range(vision_layers)),
    }
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)


class FastForward:
    """Logits of a batch whose prompts hold the same number of 56×56 pictures."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration) -> None:
        self.model: Any = model  # torch types every submodule as Tensor or Module
        self.image_token = int(model.config.image_token_id)
        self.rotary = self._rotary_of_one_image()

    def __call__(self, ids: Tensor, patches: Tensor) -> Tensor:
        """ids [B, L] padded right, patches [B·images·16, 1176] → logits [B, L, V]; the model's device and precision."""
        language = self.model.model.language_model
        embedded = language.embed_tokens(ids)
        if len(patches):
            pictures = self._encode(patches).to(embedded.dtype)
            at_image = (ids == self.image_token)[..., None].expand_as(embedded)
            embedded = embedded.masked_scatter(at_image, pictures)
        # padding lies right of every answer, so the causal mask alone hides it
        hidden = language(inputs_embeds=embedded, position_ids=self.positions(ids), use_cache=False).last_hidden_state
        return self.model.lm_head(hidden)

    def positions(self, ids: Tensor) -> Tensor:
        """M-RoPE positions [3, B, L]: a text token advances all axes by 1; a picture's 2×2 tokens span two of them."""
        image = ids == self.image_token
        index = (image.cumsum(1) - 1) % TOKENS_PER_IMAGE
        advance = torch.where(image, torch.where(index == TOKENS_PER_IMAGE - 1, 2, 0), 1)
        base = advance.cumsum(1) - advance
        row, column = torch.where(image, index // 2, 0), torch.where(image, index % 2, 0)
        return torch.stack([base, base + row, base + column])

    def _encode(self, patches: Tensor) -> Tensor:
        vision = self.model.model.visual
        images = len(patches) // PATCHES_PER_IMAGE
        cos, sin = (part.repeat(images, 1) for part in self.rotary)
        # the patch convolution covers each patch once, which is a matrix product
        hidden = linear(patches, vision.patch_embed.proj.weight.flatten(1))
        for block in vision.blocks:
            hidden = hidden + self._attend(block.attn, block.norm1(hidden), cos, sin)
            hidden = hidden + block.mlp(block.norm2(hidden))
        return vision.merger(hidden)

    def _attend(self, attention: Any, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        query, key, value = attention.qkv(hidden).reshape(len(hidden), 3, attention.num_heads, -1).unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, cos, sin)
        query, key, value = (part.reshape(-1, PATCHES_PER_IMAGE, *part.shape[1:]).transpose(1, 2) for part in (query, key, value))
        mixed = scaled_dot_product_attention(query, key, value)
        return attention.proj(mixed.transpose(1, 2).reshape(len(hidden), -1))

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
def assert_same_as_stock(fast: FastForward, ids: Tensor, patches: Tensor) -> float:
    """Largest difference of float32 logits between the two passes; raises where positions or logits disagree."""
    model = fast.model
    was_training = model.training
    model.eval()
    image = (ids == fast.image_token).long()
    grid = one_grid(len(patches) // PATCHES_PER_IMAGE, ids.device)
    everything = torch.ones_like(ids)
    expected, _ = model.model.get_rope_index(ids, mm_token_type_ids=image, image_grid_thw=grid, attention_mask=everything)
    if not torch.equal(expected.to(ids.device), fast.positions(ids)):
        raise AssertionError("the batched M-RoPE positions differ from get_rope_index")
    stock = model(
        input_ids=ids, attention_mask=everything, pixel_values=patches, image_grid_thw=grid, mm_token_type_ids=image
    ).logits
    difference = float((stock - fast(ids, patches)).abs().max())
    if difference > 1e-3:
        raise AssertionError(f"the batched forward pass differs from the stock one by {difference}")
    model.train(was_training)
    return difference
