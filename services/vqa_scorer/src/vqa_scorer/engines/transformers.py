"""The VLM in a transformers model directory: the same code for a small one on a CPU and Qwen2.5-VL-3B on a GPU."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText

from leverplus.errors import InvalidCheckpoint, InvalidConfig, NotFound
from leverplus.prompts import SHORT_ANSWER, PromptTemplate
from vqa_scorer.engines import ScoringPrompt
from vqa_scorer.engines.decoding import GenerationArguments
from vqa_scorer.engines.packed import Memory, PackedQwen
from vqa_scorer.engines.pixels import IMAGE_PROCESSOR
from vqa_scorer.engines.processor import load_processor

Device = Literal["auto", "cpu", "cuda"]
DtypeName = Literal["auto", "float32", "bfloat16"]

MODEL_TYPES = ("qwen2_5_vl",)
"""Model types whose image placeholders this engine knows how to write."""

_DESCRIBING_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
)
"""Files beside the weights that decide what the model reads. generation_config.json does not: see `_generation_config`."""


class TransformersEngine:
    """Generates in batches of at most `batch_size` prompts.

    dtype `auto` is bfloat16 on a GPU and float32 on a CPU. `threads` are torch's, `memory` bounds what is kept between batches.
    """

    def __init__(
        self,
        model_dir: Path,
        *,
        template: PromptTemplate = SHORT_ANSWER,
        arguments: GenerationArguments | None = None,
        device: Device = "auto",
        dtype: DtypeName = "auto",
        batch_size: int = 32,
        threads: int = 1,
        memory: Memory | None = None,
    ) -> None:
        self._model_dir = model_dir
        self._template = template
        self._arguments = arguments or GenerationArguments()
        self._device: Device = device
        self._dtype: DtypeName = dtype
        self._batch_size = batch_size
        self._threads = threads
        self._memory = memory
        self._fingerprint: dict[str, Any] = {}
        self._processor: Any = None
        self._packed: PackedQwen | None = None

    def load(self) -> None:
        """Reads configuration, weights and processor.

        NotFound without a model directory, InvalidCheckpoint for a foreign or incomplete one, InvalidConfig for a device
        that is not there.
        """
        directory = self._model_dir
        if not (directory / "config.json").is_file():
            raise NotFound(what="VLM directory", name=str(directory), hint="LEVERPLUS_VLM names one with a config.json")
        weights = sorted(directory.glob("*.safetensors"))
        if not weights:
            raise InvalidCheckpoint(path=directory, reason="no *.safetensors file; other weight formats are not read")
        torch.set_num_threads(self._threads)
        device = _choose_device(self._device)
        dtype = _choose_dtype(self._dtype, device)
        try:
            config, model = _read_model(directory, dtype)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as exc:
            raise InvalidCheckpoint(path=directory, reason=f"not readable: {exc}") from exc
        self.attach(model.to(device).eval(), load_processor(directory))
        self._fingerprint = {
            "vlm": {
                "model_type": config.model_type,
                "weights_sha256": _sha256(weights),
                "processor": IMAGE_PROCESSOR,
                "description_sha256": _sha256([path for name in _DESCRIBING_FILES if (path := directory / name).is_file()]),
            },
            "prompt": self._template.fingerprint(),
            "arguments": self._arguments.fingerprint(),
            "dtype": str(dtype).removeprefix("torch."),
        }

    def attach(self, model: Any, processor: Any) -> None:
        """Generates with a model in eval mode that is on its device; `load` does so with the directory's."""
        self._processor = processor
        self._packed = PackedQwen(
            model,
            processor,
            template=self._template,
            arguments=self._arguments,
            stop_tokens=self._end_of_answer(model),
            batch_size=self._batch_size,
            memory=self._memory,
        )

    def generation_fingerprint(self) -> dict[str, Any]:
        assert self._fingerprint, "load() comes first"
        return dict(self._fingerprint)

    def reserved_texts(self) -> frozenset[str]:
        """The tokenizer's special tokens: it would find them inside a text as well."""
        added = self._processor.tokenizer.added_tokens_decoder.values()
        return frozenset(token.content for token in added if token.special) | {self._processor.image_token}

    def generate(self, prompts: Sequence[ScoringPrompt]) -> list[str]:
        """Raw texts in the order of `prompts`; InvalidInput names an image that cannot be read."""
        return self._loaded.generate(prompts)

    has_probabilities = True

    def answer_probabilities(self, prompts: Sequence[ScoringPrompt], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        """P of each answer, as `engines.probabilities` defines it; InvalidInput names an image that cannot be read."""
        return self._loaded.answer_probabilities(prompts, answers)

    @property
    def _loaded(self) -> PackedQwen:
        assert self._packed is not None, "load() comes first"
        return self._packed

    def _end_of_answer(self, model: Any) -> list[int]:
        """What ends an answer. Nothing else of a directory's generation settings counts: it may ask for sampling or a
        repetition penalty, which no fingerprint would show."""
        stored = model.generation_config.eos_token_id
        end = stored if stored is not None else self._processor.tokenizer.eos_token_id
        return list(end) if isinstance(end, list) else [int(end)]


def _read_model(directory: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Configuration and model; transformers fills weights that are missing with noise, here they are refused."""
    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    if config.model_type not in MODEL_TYPES:
        supported = ", ".join(MODEL_TYPES)
        raise InvalidCheckpoint(path=directory, reason=f"model_type is {config.model_type!r}, supported: {supported}")
    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        directory, config=config, dtype=dtype, local_files_only=True, output_loading_info=True
    )
    model, report = loaded
    for trouble in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, report.get(trouble) or ())):
            shown = ", ".join(names[:5])
            raise InvalidCheckpoint(path=directory, reason=f"{len(names)} {trouble.replace('_', ' ')}: {shown}")
    return config, model


def _choose_device(wanted: Device) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InvalidConfig(field="device", reason="'cuda' was asked for and torch sees no GPU; use 'cpu' or 'auto'")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def _choose_dtype(wanted: DtypeName, device: torch.device) -> torch.dtype:
    if wanted == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if wanted == "bfloat16" else torch.float32


def _sha256(paths: Sequence[Path]) -> str:
    """Hex digest over the files' bytes, one after the other: of a single file, what sha256sum prints."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            while block := stream.read(2**20):
                total.update(block)
    return total.hexdigest()
