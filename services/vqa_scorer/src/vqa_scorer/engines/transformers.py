"""The VLM in a transformers model directory: the same code for a small one on a CPU and Qwen2.5-VL-3B on a GPU.

A Qwen2.5-VL is read by a decoder of our own (`engines.qwen2_5_vl`), any other model by its own processor and stock `generate`
(`engines.stock`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leverplus.errors import InvalidInput
from leverplus.prompts import SHORT_ANSWER, PromptTemplate, Shot
from vqa_scorer.engines import ScoringPrompt
from vqa_scorer.engines.decoding import beam_search, greedy_search
from vqa_scorer.engines.images import ImageCache, read_image
from vqa_scorer.engines.model_directory import DtypeName, open_model
from vqa_scorer.engines.probabilities import answer_probabilities, spellings
from vqa_scorer.engines.qwen2_5_vl import Decoder, EncodedPrompt, ImageFeatures
from vqa_scorer.engines.stock import StockModel

PATCHES_PER_PASS = 32_768
"""Of images that go through the vision tower together: 20 of 480 × 640 pixels."""

DECODED_HERE = ("qwen2_5_vl",)
"""Model types that the decoder of `engines.qwen2_5_vl` reads."""


@dataclass(frozen=True)
class GenerationArguments:
    """How an answer is decoded. `num_beams` 1 is greedy; `length_penalty` counts with more beams only."""

    max_new_tokens: int = 5
    num_beams: int = 1
    length_penalty: float = 0.0

    def fingerprint(self) -> dict[str, Any]:
        values = asdict(self)
        return values if self.num_beams > 1 else {**values, "length_penalty": None}


class TransformersEngine:
    """Generates in batches of at most `batch_size` prompts of similar length.

    `lora` is the folder of an adapter to the model. `device` is auto, cpu, cuda or cuda:N; dtype `auto` is bfloat16 on a GPU and
    float32 on a CPU. `threads` are torch's, `image_cache_bytes` bounds the image features that are kept, `prefix_cache_bytes` the
    keys and values of first demonstrations.
    """

    def __init__(
        self,
        model_dir: Path,
        *,
        lora: Path | None = None,
        template: PromptTemplate = SHORT_ANSWER,
        arguments: GenerationArguments | None = None,
        device: str = "auto",
        dtype: DtypeName = "auto",
        batch_size: int = 32,
        threads: int = 1,
        image_cache_bytes: int = 256 * 2**20,
        prefix_cache_bytes: int = 512 * 2**20,
    ) -> None:
        self._model_dir = model_dir
        self._lora = lora
        self._template = template
        self._arguments = arguments or GenerationArguments()
        self._device = device
        self._preparing_threads = 1
        self._dtype: DtypeName = dtype
        self._batch_size = batch_size
        self._threads = threads
        self._prefix_cache_bytes = prefix_cache_bytes
        self._images = ImageCache(self._encode_images, size=_byte_count, limit=image_cache_bytes)
        self._fingerprint: dict[str, Any] = {}
        self._processor: Any = None
        self._decoder: Decoder | None = None
        self._stock: StockModel | None = None
        self._stop_tokens: list[int] = []

    def load(self) -> None:
        """Reads configuration, weights, adapter and processor; raises what `open_model` and `StockModel` raise."""
        torch.set_num_threads(self._threads)
        opened = open_model(self._model_dir, lora=self._lora, device=self._device, dtype=self._dtype)
        if opened.model_type in DECODED_HERE:
            self.attach(opened.model, opened.processor)
        else:
            self._attach_stock(opened.model, opened.processor)
        self._fingerprint = {
            "vlm": opened.description,
            "prompt": self._template.fingerprint(),
            "arguments": self._arguments.fingerprint(),
            "dtype": str(opened.dtype).removeprefix("torch."),
        }

    def attach(self, model: Any, processor: Any) -> None:
        """Generates with a model in eval mode that is on its device; `load` does so with the directory's."""
        self._processor = processor
        # On a processor the preparation would take the cores from the model.
        self._preparing_threads = min(16, os.cpu_count() or 1) if model.device.type == "cuda" else 1
        self._stop_tokens = self._end_of_answer(model)
        shared = self._text((), Shot(Path(), "")).split(processor.image_token)[0]
        self._decoder = Decoder(
            model,
            shared=self._token_ids(shared),
            pad=processor.tokenizer.pad_token_id,
            prefix_bytes=self._prefix_cache_bytes,
        )

    def _attach_stock(self, model: Any, processor: Any) -> None:
        self._processor = processor
        self._stock = StockModel(
            model,
            processor,
            template=self._template,
            max_new_tokens=self._arguments.max_new_tokens,
            num_beams=self._arguments.num_beams,
            length_penalty=self._arguments.length_penalty,
            batch_size=self._batch_size,
            stop_tokens=self._end_of_answer(model),
        )

    def generation_fingerprint(self) -> dict[str, Any]:
        assert self._fingerprint, "load() comes first"
        return dict(self._fingerprint)

    def reserved_texts(self) -> frozenset[str]:
        """The tokenizer's special tokens: it would find them inside a text as well."""
        if self._stock is not None:
            return self._stock.reserved_texts()
        added = self._processor.tokenizer.added_tokens_decoder.values()
        return frozenset(token.content for token in added if token.special) | {self._processor.image_token}

    def generate(self, prompts: Sequence[ScoringPrompt]) -> list[str]:
        """Raw texts in the order of `prompts`; InvalidInput names an image that cannot be read."""
        if self._stock is not None:
            return self._stock.generate(prompts)
        encoded = self._encode(prompts)
        by_length = sorted(range(len(encoded)), key=lambda index: len(encoded[index].token_ids), reverse=True)
        texts = [""] * len(encoded)
        for start in range(0, len(by_length), self._batch_size):
            chosen = by_length[start : start + self._batch_size]
            written = self._search([encoded[index] for index in chosen])
            for index, text in zip(chosen, self._decode(written), strict=True):
                texts[index] = text
        return texts

    has_probabilities = True

    def answer_probabilities(self, prompts: Sequence[ScoringPrompt], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        """P of each answer, as `engines.probabilities` defines it; InvalidInput names an image that cannot be read."""
        if self._stock is not None:
            return self._stock.answer_probabilities(prompts, answers)
        replies = [[[self._token_ids(text) for text in spellings(answer)] for answer in own] for own in answers]
        encoded = self._encode(prompts)
        return answer_probabilities(self._loaded.read, encoded, replies, batch_size=self._batch_size)

    def _encode(self, prompts: Sequence[ScoringPrompt]) -> list[EncodedPrompt]:
        features = self._images.get(shot.image for prompt in prompts for shot in (*prompt.demonstrations, prompt.query))
        return [self._encode_one(prompt, features) for prompt in prompts]

    def _encode_one(self, prompt: ScoringPrompt, features: Mapping[Path, ImageFeatures]) -> EncodedPrompt:
        images = tuple(features[shot.image] for shot in (*prompt.demonstrations, prompt.query))
        text = self._text(prompt.demonstrations, prompt.query)
        placeholder: str = self._processor.image_token
        parts = text.split(placeholder)
        if len(parts) != len(images) + 1:
            raise InvalidInput(f"a question or answer holds the image placeholder {placeholder}: {prompt.query.question!r}")
        *before, last = parts
        expanded = "".join(part + placeholder * image.tokens for part, image in zip(before, images, strict=True)) + last
        return EncodedPrompt(self._token_ids(expanded), images)

    def _text(self, demonstrations: Sequence[Shot], query: Shot) -> str:
        messages = self._template.messages(demonstrations, query)
        return self._processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def _token_ids(self, text: str) -> list[int]:
        return self._processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _encode_images(self, paths: Sequence[Path]) -> list[ImageFeatures]:
        """Features of images, so many in a pass as PATCHES_PER_PASS allows; the next are prepared while the device works."""
        made: list[ImageFeatures] = []
        patches: list[Tensor] = []
        grids: list[Tensor] = []
        with ThreadPoolExecutor(self._preparing_threads) as pool:
            for prepared, grid in pool.map(self._prepare_image, paths):
                if patches and sum(map(len, patches)) + len(prepared) > PATCHES_PER_PASS:
                    made += self._loaded.encode_images(patches, grids)
                    patches, grids = [], []
                patches.append(prepared)
                grids.append(grid)
        return made + self._loaded.encode_images(patches, grids)

    def _prepare_image(self, path: Path) -> tuple[Tensor, Tensor]:
        made = self._processor.image_processor(images=[read_image(path)], return_tensors="pt")
        return made["pixel_values"], made["image_grid_thw"]

    @property
    def _loaded(self) -> Decoder:
        assert self._decoder is not None, "load() comes first"
        return self._decoder

    @torch.inference_mode()
    def _search(self, batch: Sequence[EncodedPrompt]) -> list[list[int]]:
        logits, advance = self._loaded.read(batch)
        stop = torch.tensor(self._stop_tokens, device=logits.device)
        limit = self._arguments.max_new_tokens
        if self._arguments.num_beams == 1:
            return greedy_search(logits, advance, stop_tokens=stop, max_new_tokens=limit)
        return beam_search(
            logits,
            advance,
            beams=self._arguments.num_beams,
            length_penalty=self._arguments.length_penalty,
            stop_tokens=stop,
            max_new_tokens=limit,
        )

    def _decode(self, written: Sequence[Sequence[int]]) -> list[str]:
        return self._processor.tokenizer.batch_decode(written, skip_special_tokens=True)

    def _end_of_answer(self, model: Any) -> list[int]:
        """What ends an answer. Nothing else of a directory's generation settings counts: it may ask for sampling or a
        repetition penalty, which no fingerprint would show."""
        stored = model.generation_config.eos_token_id
        end = stored if stored is not None else self._processor.tokenizer.eos_token_id
        return list(end) if isinstance(end, list) else [int(end)]


def _byte_count(image: ImageFeatures) -> int:
    return image.values.numel() * image.values.element_size()
