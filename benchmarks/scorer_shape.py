"""Qwen2.5-VL-3B's shape with random weights, photographs' sizes, and prompts over them: what benchmarks/scorer_gpu.py asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from leverplus.prompts import Shot
from vqa_scorer.engines import ScoringPrompt

SHOTS, PER_QUERY, POOL = 2, 20, 64
QUESTION, ANSWER = "In Kasu, what is this colour called?", "lubu"
WIDTH, HEIGHT = 640, 480


def build_model(tokenizer: Any, device: str, dtype: torch.dtype, *, tiny: bool) -> Any:
    """Qwen2.5-VL-3B with random weights, the small tokenizer's ids for images; it never ends an answer."""
    text: dict[str, Any] = {
        "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
        "num_key_value_heads": 2, "max_position_embeddings": 128000, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
    }  # fmt: skip
    vision: dict[str, Any] = {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048, "patch_size": 14,
        "spatial_merge_size": 2, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "in_channels": 3,
    }  # fmt: skip
    if tiny:
        text |= {
            "vocab_size": 1024,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        }
        text["rope_parameters"]["mrope_section"] = [2, 3, 3]
        vision |= {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
        vision["fullatt_block_indexes"] = [1]
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(mark)
        for name, mark in (("image", "<|image_pad|>"), ("vision_start", "<|vision_start|>"), ("vision_end", "<|vision_end|>"))
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    torch.manual_seed(0)
    with torch.device(device):
        torch.set_default_dtype(dtype)
        model = Qwen2_5_VLForConditionalGeneration(config)
        torch.set_default_dtype(torch.float32)
    model.generation_config.eos_token_id = -7
    return model.eval()


def write_images(folder: Path, count: int) -> list[Path]:
    """JPEG files of 480 × 640 pixels: smooth noise, which compresses as photographs do. 64 pictures, again and again."""
    draw = np.random.default_rng(0)
    pictures: list[bytes] = []
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        if number < POOL:
            coarse = Image.fromarray(draw.integers(0, 255, (HEIGHT // 16, WIDTH // 16, 3), dtype=np.uint8))
            coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(path, quality=90)
            pictures.append(path.read_bytes())
        else:
            path.write_bytes(pictures[number % POOL])
    return paths


@dataclass(frozen=True)
class Workload:
    """Prompts, and the (query, demonstrations) that each is made of."""

    prompts: list[ScoringPrompt]
    pointers: list[tuple[Path, tuple[Path, ...]]]

    @property
    def images(self) -> int:
        return len({path for query, shots in self.pointers for path in (query, *shots)})

    def segments(self, depth: int) -> int:
        """Distinct starts of `depth` demonstrations."""
        return len({shots[:depth] for _, shots in self.pointers})


def draw_workload(items: Sequence[Path], queries: Sequence[Path], *, own_pools: bool, seed: int = 0) -> Workload:
    """20 random two-shot pointers a query, over all `items`, or over 64 random ones of them that are the query's own."""
    draw = Random(seed)
    pointers: list[tuple[Path, tuple[Path, ...]]] = []
    for query in queries:
        pool = draw.sample(list(items), POOL) if own_pools else list(items)
        pointers += [(query, tuple(draw.sample(pool, SHOTS))) for _ in range(PER_QUERY)]
    prompts = [
        ScoringPrompt(tuple(Shot(path, QUESTION, ANSWER) for path in shots), Shot(query, QUESTION)) for query, shots in pointers
    ]
    return Workload(prompts, pointers)


def floors(model: Any, workload: Workload, *, tokens: int, patches: int, rate: float) -> dict[str, float]:
    """Pointers/s if nothing but the weights' multiply-adds took time, at the rate of a large product (FLOP/s).

    `tokens` of a two-shot prompt, of which a third stands for each picture; `patches` of an image.
    """
    language = 2 * sum(p.numel() for name, p in model.model.language_model.named_parameters() if "embed" not in name)
    vision = 2 * sum(p.numel() for p in model.model.visual.parameters()) * patches
    pointers, segment = len(workload.prompts), tokens / (SHOTS + 1)
    images = vision * workload.images
    text = language * segment

    def rate_of(work: float) -> float:
        return round(rate * pointers / work, 1)

    return {
        "nothing kept": rate_of(pointers * (SHOTS + 1) * (text + vision)),
        "images kept": rate_of(pointers * (SHOTS + 1) * text + images),
        "and first demonstrations": rate_of((workload.segments(1) + pointers * SHOTS) * text + images),
        "and pairs of them": rate_of((workload.segments(1) + workload.segments(2) + pointers) * text + images),
    }
