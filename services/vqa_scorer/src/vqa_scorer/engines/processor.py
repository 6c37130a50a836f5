"""The processor of a model directory, with or without torchvision.

Without torchvision AutoProcessor cannot build a processor that has a video half, and may return a bare tokenizer and say
nothing. Prompts here hold images only, so that half is left out where it cannot be had, and images are prepared by PIL.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from transformers import PROCESSOR_MAPPING, AutoConfig, AutoProcessor, ProcessorMixin, Qwen2_5_VLProcessor

from leverplus.errors import InvalidConfig, NotFound, Unavailable

_IMAGE_HALF = {"image_processor", "tokenizer"}
_UNUSED_HALVES = {"video_processor"}


def image_half(stock: Any) -> Any:
    """`stock`, a transformers processor class, without its video half. Inputs: text and images; outputs: those of `stock`."""

    class ImageHalf(stock):
        # The signature is what transformers reads to find the parts a processor is made of.
        def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **kwargs: Any) -> None:
            super().__init__(
                image_processor=image_processor,
                tokenizer=tokenizer,
                video_processor=None,
                chat_template=chat_template,
                **kwargs,
            )

    ImageHalf.__name__ = stock.__name__
    return ImageHalf


ImageTextProcessor: Any = image_half(Qwen2_5_VLProcessor)
"""Of Qwen2.5-VL."""


def torchvision_works() -> bool:
    """Whether torchvision can be imported; an installed one that was built for another torch cannot."""
    try:
        importlib.import_module("torchvision")
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def load_processor(model_dir: str | Path) -> Any:
    """Processor of the model in `model_dir`: chat template, tokenizer that pads left, image processor.

    With torchvision it is transformers' stock processor; without, its image half on PIL (for Qwen2-VL and Qwen2.5-VL the same
    sizes and grids, pixels equal up to the rounding of the resize).

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


def _image_text_processor(folder: Path) -> Any:
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    try:
        stock: Any = PROCESSOR_MAPPING.get(type(config), None)
        parts = set(stock.get_attributes()) if stock is not None else {"no processor that transformers knows"}
        if not parts - _UNUSED_HALVES <= _IMAGE_HALF:
            raise ImportError(f"it has {', '.join(sorted(parts))}")
        whole: Any = stock if parts <= _IMAGE_HALF else image_half(stock)
        processor = whole.from_pretrained(folder, local_files_only=True)
    # A part that needs torchvision says so by ImportError, a processor that cannot be without its video half by TypeError.
    except (ImportError, TypeError, AttributeError) as error:
        said = " ".join(str(error).split())
        raise Unavailable(
            what=f"the processor of {folder}",
            reason=f"a {config.model_type!r} model needs torchvision, which cannot be imported ({said})",
            hint="install the torchvision of this torch",
        ) from error
    processor.chat_template = processor.chat_template or processor.tokenizer.chat_template
    return processor
