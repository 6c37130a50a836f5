"""Opening a transformers model directory: weights on their device, processor, and what a fingerprint says of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig, AutoModelForImageTextToText

from leverplus.errors import InvalidCheckpoint, InvalidConfig, NotFound
from vqa_scorer.engines.lora import merge_adapter
from vqa_scorer.engines.processor import load_processor

DtypeName = Literal["auto", "float32", "bfloat16"]

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
"""Files beside the weights that decide what the model reads. Of generation_config.json only what ends an answer counts."""


@dataclass(frozen=True)
class OpenedModel:
    """A model in eval mode on its device, with its adapter merged. `description` is the fingerprint of the files."""

    model: Any
    processor: Any
    dtype: torch.dtype
    description: dict[str, Any]

    @property
    def model_type(self) -> str:
        return str(self.description["model_type"])


def open_model(directory: Path, *, lora: Path | None, device: str, dtype: DtypeName) -> OpenedModel:
    """Reads configuration, weights, adapter and processor.

    `device` is auto, cpu, cuda or cuda:N; dtype auto is bfloat16 on a GPU and float32 on a CPU. NotFound without a model
    directory, InvalidCheckpoint for one that is incomplete or no image-text-to-text model, InvalidConfig for a device that is
    not there, Unavailable where the processor or the adapter needs a package that is not.
    """
    if not (directory / "config.json").is_file():
        raise NotFound(what="VLM directory", name=str(directory), hint="LEVERPLUS_VLM names one with a config.json")
    weights = sorted(directory.glob("*.safetensors"))
    if not weights:
        raise InvalidCheckpoint(path=directory, reason="no *.safetensors file; other weight formats are not read")
    if (directory / "adapter_config.json").is_file():
        # transformers would load it or not, as peft is installed or not.
        reason = "an adapter lies among the model's files; give it a folder of its own and name that with LEVERPLUS_LORA"
        raise InvalidCheckpoint(path=directory, reason=reason)
    place = choose_device(device)
    chosen = _choose_dtype(dtype, place)
    try:
        config, model = _read_model(directory, chosen)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, StrictDataclassError) as exc:
        raise InvalidCheckpoint(path=directory, reason=f"not readable: {' '.join(str(exc).split())}") from exc
    model = model.to(place).eval()
    adapter: dict[str, Any] = {}
    if lora is not None:
        model, adapter["lora"] = merge_adapter(model, lora)
    processor = load_processor(directory)
    description = {
        "model_type": config.model_type,
        "weights_sha256": _sha256(weights),
        "processor": type(processor.image_processor).__name__,
        "description_sha256": _sha256([path for name in _DESCRIBING_FILES if (path := directory / name).is_file()]),
    }
    return OpenedModel(model, processor, chosen, description | adapter)


def choose_device(wanted: str) -> torch.device:
    """The device, made current in this thread if it is a GPU; InvalidConfig, with the GPUs that there are, if it is not there."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", wanted):
        raise InvalidConfig(field="LEVERPLUS_DEVICE", reason=f"{wanted!r} is none of auto, cpu, cuda and cuda:0, cuda:1, …")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cpu" or (wanted == "auto" and count == 0):
        return torch.device("cpu")
    if count == 0:
        raise InvalidConfig(
            field="LEVERPLUS_DEVICE", reason=f"{wanted!r} was asked for and torch sees no GPU; use 'cpu' or 'auto'"
        )
    number = int(wanted.partition(":")[2] or 0)
    if number >= count:
        seen = "cuda:0 alone" if count == 1 else f"{count} GPUs, cuda:0 to cuda:{count - 1}"
        raise InvalidConfig(field="LEVERPLUS_DEVICE", reason=f"{wanted!r} was asked for and torch sees {seen}")
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    return device


def _read_model(directory: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Configuration and model; transformers fills weights that are missing with noise, here they are refused."""
    config: Any = AutoConfig.from_pretrained(directory, local_files_only=True)
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise InvalidCheckpoint(
            path=directory, reason=f"model_type is {config.model_type!r}, which is no image-text-to-text model of transformers"
        )
    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        directory, config=config, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    model, report = loaded
    for trouble in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, report.get(trouble) or ())):
            shown = ", ".join(names[:5])
            raise InvalidCheckpoint(path=directory, reason=f"{len(names)} {trouble.replace('_', ' ')}: {shown}")
    return config, model


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
