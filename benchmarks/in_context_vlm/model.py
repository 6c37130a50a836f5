"""The VLM's shape, and how it is saved: transformers' own Qwen2_5_VLForConditionalGeneration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, Qwen2_5_VLConfig

from in_context_vlm.tokenizer import END_OF_TEXT, IMAGE_PAD, TURN_END, VIDEO_PAD, VISION_END, VISION_START


def small_config(tokenizer: Any, *, layers: int, intermediate: int, key_value_heads: int, vision_layers: int) -> Qwen2_5_VLConfig:
    """Text layers of width 256 with 8 heads, vision layers of width 128 with 4; every picture is one attention window."""
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


def save_model(model: Any, processor: Any, folder: Path) -> None:
    """A directory that from_pretrained and AutoProcessor read as they read Qwen's own."""
    model = model.to(torch.bfloat16)
    stops = processor.tokenizer.convert_tokens_to_ids([TURN_END, END_OF_TEXT])
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=stops, pad_token_id=stops[1])
    model.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    described = folder / "preprocessor_config.json"
    # the names under which Qwen publishes its processor: each installation picks the class it can run
    names = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}
    described.write_text(json.dumps({**json.loads(described.read_text()), **names}, indent=2, sort_keys=True) + "\n")
