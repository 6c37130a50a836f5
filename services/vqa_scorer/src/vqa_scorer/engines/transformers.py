"""The VLM in a transformers model directory: the same code for a small one on a CPU and Qwen2.5-VL-3B on a GPU.

A Qwen2.5-VL is read by a decoder of our own (`engines.packed`), any other model by its own processor and stock `generate`
(`engines.stock`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from leverplus.prompts import SHORT_ANSWER, PromptTemplate
from vqa_scorer.engines import EngineCounts, ScoringPrompt
from vqa_scorer.engines.decoding import GenerationArguments
from vqa_scorer.engines.model_directory import DtypeName, open_model
from vqa_scorer.engines.packed import Memory, PackedQwen
from vqa_scorer.engines.pixels import IMAGE_PROCESSOR
from vqa_scorer.engines.stock import StockModel

PACKED_MODEL_TYPES = ("qwen2_5_vl",)
"""Model types that the decoder of `engines.packed` reads."""
_CPU_BATCH, _GPU_BATCH = 32, 256


class TransformersEngine:
    """Generates in batches of at most `batch_size` prompts, fewer where the device's memory asks for it.

    `lora` is the folder of an adapter to the model. `device` is auto, cpu, cuda or cuda:N; dtype `auto` is bfloat16 on a GPU and
    float32 on a CPU. `threads` are torch's, `memory` bounds what is kept between batches.
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
        batch_size: int | None = None,
        threads: int = 1,
        memory: Memory | None = None,
    ) -> None:
        self._model_dir = model_dir
        self._lora = lora
        self._template = template
        self._arguments = arguments or GenerationArguments()
        self._device = device
        self._dtype: DtypeName = dtype
        self._wanted_batch_size = batch_size
        self._threads = threads
        self._memory = memory
        self._on_gpu = False
        self._fingerprint: dict[str, Any] = {}
        self._processor: Any = None
        self._packed: PackedQwen | None = None
        self._stock: StockModel | None = None

    def load(self) -> None:
        """Reads configuration, weights, adapter and processor; raises what `open_model` and `StockModel` raise."""
        torch.set_num_threads(self._threads)
        opened = open_model(self._model_dir, lora=self._lora, device=self._device, dtype=self._dtype)
        self._on_gpu = opened.model.device.type == "cuda"
        described = opened.description
        if opened.model_type in PACKED_MODEL_TYPES:
            self.attach(opened.model, opened.processor)
            described = {**described, "processor": IMAGE_PROCESSOR}
        else:
            self._processor = opened.processor
            self._stock = StockModel(
                opened.model,
                opened.processor,
                template=self._template,
                arguments=self._arguments,
                stop_tokens=self._end_of_answer(opened.model),
                batch_size=self.batch_size,
            )
        self._fingerprint = {
            "vlm": described,
            "prompt": self._template.fingerprint(),
            "arguments": self._arguments.fingerprint(),
            "dtype": str(opened.dtype).removeprefix("torch."),
        }

    def attach(self, model: Any, processor: Any) -> None:
        """Generates with a Qwen2.5-VL in eval mode that is on its device; `load` does so with the directory's."""
        self._processor = processor
        self._on_gpu = model.device.type == "cuda"
        if self._on_gpu:
            # Of this thread, which is the one that generates: kernels and copies then need not switch devices at every call.
            torch.cuda.set_device(model.device)
        self._packed = PackedQwen(
            model,
            processor,
            template=self._template,
            arguments=self._arguments,
            stop_tokens=self._end_of_answer(model),
            batch_size=self.batch_size,
            memory=self._memory or Memory(),
        )

    @property
    def batch_size(self) -> int:
        """On a GPU large: a batch shares what its prompts begin with, and its last tokens cost as much for few as for many."""
        return self._wanted_batch_size or (_GPU_BATCH if self._on_gpu else _CPU_BATCH)

    def generation_fingerprint(self) -> dict[str, Any]:
        assert self._fingerprint, "load() comes first"
        return dict(self._fingerprint)

    def reserved_texts(self) -> frozenset[str]:
        """The tokenizer's special tokens and what stands for an image: both would be found inside a text as well."""
        added = self._processor.tokenizer.added_tokens_decoder.values()
        marks = {getattr(self._processor, name, None) for name in ("image_token", "boi_token")}
        return frozenset(token.content for token in added if token.special) | {mark for mark in marks if mark}

    def generate(self, prompts: Sequence[ScoringPrompt]) -> list[str]:
        """Raw texts in the order of `prompts`; InvalidInput names an image that cannot be read."""
        return self._loaded.generate(prompts)

    def look_ahead(self, prompts: Sequence[ScoringPrompt]) -> None:
        """Begins to decode the images of prompts that will come next, on a GPU."""
        if self._packed is not None:
            self._packed.look_ahead(prompts)

    has_probabilities = True

    def answer_probabilities(self, prompts: Sequence[ScoringPrompt], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        """P of each answer, as `engines.probabilities` defines it; InvalidInput names an image that cannot be read."""
        return self._loaded.answer_probabilities(prompts, answers)

    @property
    def _loaded(self) -> PackedQwen | StockModel:
        loaded = self._packed if self._packed is not None else self._stock
        assert loaded is not None, "load() comes first"
        return loaded

    def counts(self) -> EngineCounts:
        """Of a Qwen2.5-VL; a model on the stock path counts its prompts alone."""
        return self._loaded.counts if self._packed is not None or self._stock is not None else EngineCounts()

    def _end_of_answer(self, model: Any) -> list[int]:
        """What ends an answer. Nothing else of a directory's generation settings counts: it may ask for sampling or a
        repetition penalty, which no fingerprint would show."""
        stored = model.generation_config.eos_token_id
        end = stored if stored is not None else self._processor.tokenizer.eos_token_id
        return list(end) if isinstance(end, list) else [int(end)]
