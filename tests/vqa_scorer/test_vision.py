"""The vision tower with batched windows says what transformers' own says."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from vqa_scorer.engines.elementwise import Elementwise
from vqa_scorer.engines.vision import KnownBounds, hastened


def tower() -> Any:
    vision = {
        "depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 16, "patch_size": 14,
        "spatial_merge_size": 2, "window_size": 56, "fullatt_block_indexes": [1], "in_channels": 3,
    }  # fmt: skip
    text = {
        "vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
    }  # fmt: skip
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)).model.visual.eval()


def test_windows_are_worked_out_once_a_pass_and_empty_ones_left_out() -> None:
    known = KnownBounds()
    bounds, whole = torch.tensor([0, 4, 8, 10, 14, 14]), torch.tensor([0, 14])
    spans = known.spans(bounds)
    assert spans.query_bounds.tolist() == [0, 4, 8, 10, 14]
    assert known.spans(whole) is known.spans(whole)
    assert known.spans(bounds) is spans
    assert known.spans(torch.tensor([0, 3])).longest_key == 3


@torch.inference_mode()
def test_a_pass_of_images_of_several_sizes_equals_transformers_own() -> None:
    stock = tower()
    ours = hastened(stock, Elementwise())
    # 10 × 14 patches do not fill their windows of 4 × 4, so there are four lengths of them.
    grids = torch.tensor([[1, 10, 14], [1, 4, 4], [1, 8, 6]])
    patches = torch.randn(int(grids.prod(dim=1).sum()), 3 * 2 * 14 * 14)
    together = ours(patches, grid_thw=grids).pooler_output
    assert torch.allclose(together, stock(patches, grid_thw=grids).pooler_output, atol=1e-5)
    one = ours(patches[:140], grid_thw=grids[:1]).pooler_output
    assert torch.allclose(together[: len(one)], one, atol=1e-5)
