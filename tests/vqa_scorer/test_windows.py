"""The vision tower with batched windows says what transformers' own says."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from vqa_scorer.engines.windows import WindowGroups, batch_windows


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


def test_windows_of_one_length_are_grouped_and_worked_out_once() -> None:
    groups = WindowGroups()
    bounds = torch.tensor([0, 4, 8, 10, 14, 14])
    found = {tuple(group.shape): group.tolist() for group in groups.of(bounds)}
    assert found == {(3, 4): [[0, 1, 2, 3], [4, 5, 6, 7], [10, 11, 12, 13]], (1, 2): [[8, 9]]}
    assert groups.of(bounds) is groups.of(bounds)
    whole = torch.tensor([0, 14])
    groups.of(whole)
    assert groups.of(bounds)[0] is groups.of(bounds)[0]
    assert [group.shape for group in groups.of(torch.tensor([0, 3]))] == [(1, 3)]


@torch.inference_mode()
def test_a_pass_of_images_of_several_sizes_equals_transformers_own() -> None:
    stock = tower()
    ours = copy.deepcopy(stock)
    batch_windows(ours)
    # 10 × 14 patches do not fill their windows of 4 × 4, so there are four lengths of them.
    grids = torch.tensor([[1, 10, 14], [1, 4, 4], [1, 8, 6]])
    patches = torch.randn(int(grids.prod(dim=1).sum()), 3 * 2 * 14 * 14)
    together = ours(patches, grid_thw=grids).pooler_output
    assert torch.allclose(together, stock(patches, grid_thw=grids).pooler_output, atol=1e-5)
    one = ours(patches[:140], grid_thw=grids[:1]).pooler_output
    assert torch.allclose(together[: len(one)], one, atol=1e-5)
