"""What the scorer's engine does at Qwen2.5-VL-3B's shape on one GPU, beside transformers' `generate` and the arithmetic's floor.

    python benchmarks/scorer_gpu.py [--tiny] [--queries 100] [--out benchmarks/results/scorer_gpu.json]

Weights are random: shapes decide what a pointer costs. 100 queries with 20 two-shot pointers each over one pool of 64 items,
photographs' size (480 × 640 JPEG files, decoded and preprocessed within the time), five tokens forced, caches empty at the start.
torch, transformers and our sources are all it needs. `--tiny` runs the code paths with a small shape, on a processor too.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from provenance import RESULTS, ROOT, commit
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from leverplus.prompts import Shot
from vqa_scorer.engines import ScoringPrompt
from vqa_scorer.engines.processor import ImageTextProcessor, load_processor
from vqa_scorer.engines.decoding import GenerationArguments
from vqa_scorer.engines.transformers import TransformersEngine

TOKENIZER = ROOT / "assets" / "in-context-vlm"
NEW_TOKENS, POOL, SHOTS, PER_QUERY = 5, 64, 2, 20
QUESTION, ANSWER = "In Kasu, what is this colour called?", "lubu"


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
    """JPEG files of 480 × 640 pixels: smooth noise, which compresses as photographs do."""
    draw = np.random.default_rng(0)
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for path in paths:
        coarse = Image.fromarray(draw.integers(0, 255, (30, 40, 3), dtype=np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)
    return paths


def draw_prompts(pool: Sequence[Path], queries: Sequence[Path], seed: int = 0) -> list[ScoringPrompt]:
    draw = Random(seed)
    return [
        ScoringPrompt(tuple(Shot(path, QUESTION, ANSWER) for path in draw.sample(list(pool), SHOTS)), Shot(query, QUESTION))
        for query in queries
        for _ in range(PER_QUERY)
    ]


def synchronised(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(device: str, work: Callable[[], Any]) -> float:
    synchronised(device)
    started = time.perf_counter()
    work()
    synchronised(device)
    return time.perf_counter() - started


def stock_rate(model: Any, processor: Any, prompts: Sequence[ScoringPrompt], beams: int, template: Any, device: str) -> float:
    """Pointers/s of transformers' own processor and `generate` on one batch, after one for warming up."""

    def work() -> None:
        texts = [
            processor.apply_chat_template(
                template.messages(prompt.demonstrations, prompt.query), add_generation_prompt=True, tokenize=False
            )
            for prompt in prompts
        ]
        images = [[Image.open(s.image).convert("RGB") for s in (*p.demonstrations, p.query)] for p in prompts]
        inputs = processor(text=texts, images=images, return_tensors="pt", padding=True).to(device)
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        with torch.inference_mode():
            model.generate(
                **inputs, max_new_tokens=NEW_TOKENS, num_beams=beams, do_sample=False, eos_token_id=None, pad_token_id=0
            )

    work()
    return len(prompts) / seconds_of(device, work)


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product."""
    size = 8192 if device == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        left @ right
    return 10 * 2 * size**3 / seconds_of(device, lambda: [left @ right for _ in range(10)])


def floors(model: Any, tokens: int, patches: int, images: int, pointers: int, rate: float) -> dict[str, float]:
    """Pointers/s if nothing but the matrices' multiply-adds took time, at the rate of a large product."""
    text = 2 * sum(p.numel() for name, p in model.model.language_model.named_parameters() if "embed" not in name) * tokens
    vision = 2 * sum(p.numel() for p in model.model.visual.parameters()) * patches
    each_image = vision * images / pointers
    return {
        "nothing kept": rate / (text + vision * (SHOTS + 1)),
        "images kept": rate / (text + each_image),
        "images and first demonstrations kept": rate / (text * SHOTS / (SHOTS + 1) + each_image),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--beam-queries", type=int, default=50, help="queries of the run with 3 beams")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--stock-batch", type=int, default=64)
    parser.add_argument("--out", type=Path, default=RESULTS / "scorer_gpu.json")
    parser.add_argument("--commit", help="of the sources, where git is not at hand")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    small = load_processor(TOKENIZER)
    processor = ImageTextProcessor(Qwen2VLImageProcessorPil(), small.tokenizer, chat_template=small.chat_template)
    processor.tokenizer.padding_side = "left"
    model = build_model(processor.tokenizer, device, dtype, tiny=arguments.tiny)
    rate = matrix_rate(device, dtype)
    rows: list[dict[str, Any]] = []

    def report(row: dict[str, Any]) -> None:
        rows.append(row)
        print(json.dumps(row), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        paths = write_images(Path(folder), POOL + arguments.queries)
        pool, queries = paths[:POOL], paths[POOL:]
        # Kernels are chosen and memory is reserved before the clock starts; the images are others.
        warm_up = draw_prompts(write_images(Path(tempfile.mkdtemp(dir=folder)), 8), paths[:4])
        for beams, count in ((1, arguments.queries), (3, min(arguments.beam_queries, arguments.queries))):
            given = GenerationArguments(NEW_TOKENS, beams, 0.0)
            engine = TransformersEngine(
                TOKENIZER, arguments=given, batch_size=arguments.batch_size,
                image_cache_bytes=8 * 2**30, prefix_cache_bytes=16 * 2**30,
            )  # fmt: skip
            engine.attach(model, processor)
            engine.generate(warm_up[: arguments.batch_size])
            engine.attach(model, processor)
            prompts = draw_prompts(pool, queries[:count])
            spent = seconds_of(device, lambda engine=engine, prompts=prompts: engine.generate(prompts))
            row = {"what": "ours", "beams": beams, "pointers": len(prompts), "seconds": round(spent, 2)}
            report({**row, "pointers_per_s": round(len(prompts) / spent, 2)})
            template = engine._template
        encoded = engine._encode(prompts[:1])[0]
        tokens, patches = len(encoded.token_ids), 4 * encoded.images[0].tokens
        limits = floors(model, tokens, patches, POOL + arguments.queries, arguments.queries * PER_QUERY, rate)
        prompts = draw_prompts(pool, queries)
        for what, size in (("stock, one at a time", 1), ("stock, batched", arguments.stock_batch)):
            for beams in (1, 3):
                try:
                    found = stock_rate(model, processor, prompts[:size], beams, template, device)
                    report({"what": what, "beams": beams, "batch": size, "pointers_per_s": round(found, 2)})
                except torch.OutOfMemoryError:
                    torch.cuda.empty_cache()
                    report({"what": what, "beams": beams, "batch": size, "pointers_per_s": None, "why": "out of memory"})
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "commit": arguments.commit or commit(),
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "dtype": str(dtype),
        "tokens": tokens,
        "matrix_tflops": rate / 1e12,
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None,
        "floors_pointers_per_s": limits,
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({"floors": limits, "tokens": tokens, "matrix_tflops": rate / 1e12, "peak": result["peak_memory_gib"]}))


if __name__ == "__main__":
    main()
