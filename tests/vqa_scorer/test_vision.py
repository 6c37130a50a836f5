"""The vision tower with batched windows says what transformers' own says."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from vqa_scorer.engines.elementwise import Elementwise
from vqa_scorer.engines.prefixes import ImageShape
from vqa_scorer.engines.vision import VisionTower


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


@torch.inference_mode()
def test_a_pass_of_images_of_several_sizes_equals_transformers_own() -> None:
    stock = tower()
    ours = VisionTower(stock, Elementwise())
    # 10 × 14 patches do not fill their windows of 4 × 4, so there are four lengths of them.
    grids = torch.tensor([[1, 10, 14], [1, 4, 4], [1, 8, 6]])
    shapes = [ImageShape(number, rows // 2, columns // 2) for number, (_, rows, columns) in enumerate(grids.tolist())]
    patches = torch.randn(int(grids.prod(dim=1).sum()), 3 * 2 * 14 * 14)
    together = ours.features(patches, shapes)
    assert [len(part) for part in together] == [35, 4, 12]
    expected = stock(patches, grid_thw=grids).pooler_output
    assert torch.allclose(torch.cat(together), expected, atol=1e-5)
    assert torch.allclose(together[0], ours.features(patches[:140], shapes[:1])[0], atol=1e-5)
