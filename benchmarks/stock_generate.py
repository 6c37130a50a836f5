"""Answers as transformers' own processor and `generate` give them: what the engines are measured against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from leverplus.prompts import PromptTemplate
from vqa_scorer.engines import ScoringPrompt


def stock_texts(
    model: Any,
    processor: Any,
    template: PromptTemplate,
    prompts: Sequence[ScoringPrompt],
    *,
    beams: int,
    new_tokens: int,
    forced: bool = False,
) -> list[str]:
    """One batch, images decoded and preprocessed too; `forced`: no token ends an answer."""
    texts = [
        processor.apply_chat_template(
            template.messages(prompt.demonstrations, prompt.query), add_generation_prompt=True, tokenize=False
        )
        for prompt in prompts
    ]
    images = [[Image.open(shot.image).convert("RGB") for shot in (*p.demonstrations, p.query)] for p in prompts]
    inputs = processor(text=texts, images=images, return_tensors="pt", padding=True).to(model.device)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    chosen: dict[str, Any] = {"max_new_tokens": new_tokens, "num_beams": beams, "do_sample": False}
    chosen |= {"length_penalty": 0.0} if beams > 1 else {}
    chosen |= {"eos_token_id": None, "pad_token_id": 0} if forced else {}
    with torch.inference_mode():
        written = model.generate(**inputs, **chosen)
    return processor.tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
