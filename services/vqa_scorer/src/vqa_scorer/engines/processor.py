"""The processor of a Qwen2.5-VL model directory, with or without torchvision.

transformers' own Qwen2_5_VLProcessor has a video half that cannot be built without torchvision; AutoProcessor then returns
a bare tokenizer and says nothing. Prompts here hold images only, so that half is left out where it cannot be had.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoProcessor, AutoTokenizer, ProcessorMixin, Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from leverplus.errors import InvalidConfig, NotFound, Unavailable

FAMILIES_WITHOUT_TORCHVISION = ("qwen2_5_vl", "qwen2_vl")


class ImageTextProcessor(Qwen2_5_VLProcessor):
    """Qwen2_5_VLProcessor without the video half. Inputs: text and images; outputs: those of the stock class."""

    # The two-argument signature is what transformers reads to find the parts a processor is made of.
    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **kwargs: Any) -> None:
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template, **kwargs)


def torchvision_works() -> bool:
    """Whether torchvision can be imported; an installed one that was built for another torch cannot."""
    try:
        importlib.import_module("torchvision")
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def load_processor(model_dir: str | Path) -> Any:
    """Processor of the model in `model_dir`: chat template, tokenizer that pads left, image processor.

    With torchvision it is transformers' stock processor of any image-text model; without, Qwen2-VL's and Qwen2.5-VL's image half
    on PIL (same sizes and grids, pixels equal up to the rounding of the resize).

    Raises NotFound for a missing directory, InvalidConfig for one that holds no usable processor or no chat template,
    Unavailable where the model family needs torchvision.
    """
    folder = Path(model_dir)
    if not (folder / "config.json").is_file():
        raise NotFound(
            what="model directory", name=str(folder), hint="give one with config.json, weights, tokenizer and processor files"
        )
    try:
        processor = _stock_processor(folder) if torchvision_works() else None
        if processor is None:
            processor = _image_text_processor(folder)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidConfig(field=f"model directory {folder}", reason=f"its processor files cannot be read: {error}") from error
    if not processor.chat_template:
        raise InvalidConfig(
            field=f"model directory {folder}", reason="no chat template in chat_template.jinja or tokenizer_config.json"
        )
    processor.tokenizer.padding_side = "left"  # generation continues at the right end of every prompt of a batch
    return processor


def _stock_processor(folder: Path) -> Any:
    """transformers' own processor, or None where it returned only a part of one."""
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    whole = isinstance(processor, ProcessorMixin) and getattr(processor, "image_processor", None) is not None
    return processor if whole else None


def _image_text_processor(folder: Path) -> ImageTextProcessor:
    family = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
    if family not in FAMILIES_WITHOUT_TORCHVISION:
        raise Unavailable(
            what=f"the processor of {folder}",
            reason=f"a {family!r} model needs torchvision, which cannot be imported",
            hint=f"install the torchvision of this torch, or use one of: {', '.join(FAMILIES_WITHOUT_TORCHVISION)}",
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    described, _ = Qwen2_5_VLProcessor.get_processor_dict(folder, local_files_only=True)
    image_processor = Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True)
    return ImageTextProcessor(image_processor, tokenizer, chat_template=described.get("chat_template") or tokenizer.chat_template)
