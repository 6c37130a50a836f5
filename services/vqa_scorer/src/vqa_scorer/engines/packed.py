"""Prompts through a Qwen2.5-VL in batches that fit the device, the next one prepared while it works on one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from leverplus.errors import GenerationFailed, InvalidInput
from leverplus.prompts import PromptTemplate, Shot
from vqa_scorer.engines import ScoringPrompt
from vqa_scorer.engines.decoding import GenerationArguments, beam_search, greedy_search
from vqa_scorer.engines.features import FeatureCache
from vqa_scorer.engines.images import FileVersion, file_version
from vqa_scorer.engines.pixels import PixelReader, Pixels
from vqa_scorer.engines.prefixes import EncodedPrompt, ImageFeatures
from vqa_scorer.engines.probabilities import answer_probabilities, spellings
from vqa_scorer.engines.qwen2_5_vl import Decoder, encode

logger = logging.getLogger(__name__)

R = TypeVar("R")
T = TypeVar("T")

PATCHES_PER_PASS = 32_768
"""Of images that go through the vision tower together: 20 of 480 × 640 pixels."""
TOKENS_PER_BATCH = 163_840
"""Of prompts that are read together; more of them make a GPU's matrix products no faster."""
_SHARE_OF_FREE_MEMORY = 0.6
"""That a batch may take; what else lies there is fragmented, and caches of images and prefixes grow."""


@dataclass(frozen=True)
class Memory:
    """Bounds in bytes: image features on the device and in the host's memory, and keys and values of first demonstrations."""

    images: int
    images_on_host: int
    prefixes: int

    @staticmethod
    def of(device: torch.device) -> Memory:
        """Shares of a GPU's memory; on a processor little, for it is the host's."""
        if device.type != "cuda":
            return Memory(256 * 2**20, 0, 512 * 2**20)
        whole = torch.cuda.get_device_properties(device).total_memory
        return Memory(whole // 20, 8 * 2**30, whole // 8)


@dataclass(frozen=True)
class _Prepared:
    """A prompt's token ids with one placeholder an image, and its images in prompt order."""

    token_ids: list[int]
    images: tuple[FileVersion, ...]


class PackedQwen:
    """A loaded `Qwen2_5_VLForConditionalGeneration` in eval mode on its device; its own `generate` still works.

    `batch_size` prompts at most are prepared and read together, fewer where the device's memory asks for it.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        template: PromptTemplate,
        arguments: GenerationArguments,
        stop_tokens: Sequence[int],
        batch_size: int,
        memory: Memory | None = None,
    ) -> None:
        device: torch.device = model.device
        memory = memory or Memory.of(device)
        self._processor, self._template, self._arguments = processor, template, arguments
        self._placeholder: str = processor.image_token
        self._batch_size = batch_size
        self._stop_tokens = torch.tensor(stop_tokens, device=device)
        start = self._text(ScoringPrompt((), Shot(Path(), ""))).split(self._placeholder)[0]
        self._decoder = Decoder(model, shared=self._token_ids([start])[0], prefix_bytes=memory.prefixes)
        self._pixels = PixelReader(processor.image_processor, device)
        self._features = FeatureCache(device_bytes=memory.images, host_bytes=memory.images_on_host)
        # On a processor the preparation would take the cores from the model.
        threads = min(16, os.cpu_count() or 1) if device.type == "cuda" else 0
        self._readers = ThreadPoolExecutor(threads, thread_name_prefix="image") if threads else None
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="prompt") if threads else None
        self._tokens_a_batch = TOKENS_PER_BATCH
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            room = (free - memory.images - memory.prefixes) * _SHARE_OF_FREE_MEMORY
            self._tokens_a_batch = min(TOKENS_PER_BATCH, max(int(room) // self._decoder.bytes_a_token, 1))

    def generate(self, prompts: Sequence[ScoringPrompt]) -> list[str]:
        """Raw texts in the order of `prompts`; InvalidInput names an image that cannot be read."""
        texts: dict[int, str] = {}
        for indices, encoded in self._encoded(prompts):
            written = self._in_batches(encoded, self._search)
            texts |= zip(indices, self._processor.tokenizer.batch_decode(written, skip_special_tokens=True), strict=True)
        return [texts[index] for index in range(len(prompts))]

    def answer_probabilities(self, prompts: Sequence[ScoringPrompt], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        """P of each answer, as `engines.probabilities` defines it; InvalidInput names an image that cannot be read."""
        replies = [[self._token_ids(spellings(answer)) for answer in own] for own in answers]
        found: dict[int, list[float]] = {}
        for indices, encoded in self._encoded(prompts):
            own = {id(prompt): replies[index] for index, prompt in zip(indices, encoded, strict=True)}

            def weigh(batch: Sequence[EncodedPrompt], own: Mapping[int, list[list[list[int]]]] = own) -> list[list[float]]:
                asked = [own[id(prompt)] for prompt in batch]
                return answer_probabilities(self._decoder.read, batch, asked, batch_size=self._batch_size)

            found |= zip(indices, self._in_batches(encoded, weigh), strict=True)
        return [found[index] for index in range(len(prompts))]

    def _encoded(self, prompts: Sequence[ScoringPrompt]) -> Iterator[tuple[list[int], list[EncodedPrompt]]]:
        """Indices and encoded prompts, those that begin alike side by side."""
        order = sorted(range(len(prompts)), key=lambda index: _order(prompts[index]))
        chunks = [order[start : start + self._batch_size] for start in range(0, len(order), self._batch_size)]
        prepare = self._prepare
        for chunk, (prepared, images) in zip(
            chunks, _one_ahead(self._ahead, lambda chunk: prepare([prompts[index] for index in chunk]), chunks), strict=True
        ):
            features = self._encode_images(images)
            yield chunk, [
                encode(one.token_ids, [features[version] for version in one.images], self._decoder.image_token)
                for one in prepared
            ]

    def _prepare(self, prompts: Sequence[ScoringPrompt]) -> tuple[list[_Prepared], dict[FileVersion, ImageFeatures | Pixels]]:
        """Tokens of prompts, and their images, decoded where their features are not kept. Runs in a thread of its own on a GPU."""
        paths = [tuple(shot.image for shot in (*prompt.demonstrations, prompt.query)) for prompt in prompts]
        versions = {path: file_version(path) for path in dict.fromkeys(path for own in paths for path in own)}
        found: dict[FileVersion, ImageFeatures | Pixels] = {}
        missing: dict[FileVersion, Path] = {}
        for path, version in versions.items():
            kept = self._features.get(version)
            if kept is None:
                missing[version] = path
            else:
                found[version] = kept
        read = self._readers.map if self._readers is not None else map
        found |= zip(missing, read(self._pixels.read, missing.values()), strict=True)
        prepared: list[_Prepared] = []
        token_ids = self._token_ids([self._text(prompt) for prompt in prompts])
        for prompt, own, ids in zip(prompts, paths, token_ids, strict=True):
            if ids.count(self._decoder.image_token) != len(own):
                raise InvalidInput(
                    f"a question or answer holds the image placeholder {self._placeholder}: {prompt.query.question!r}"
                )
            prepared.append(_Prepared(ids, tuple(versions[path] for path in own)))
        return prepared, found

    def _encode_images(self, images: Mapping[FileVersion, ImageFeatures | Pixels]) -> dict[FileVersion, ImageFeatures]:
        features: dict[FileVersion, ImageFeatures] = {}
        waiting: list[tuple[FileVersion, Pixels]] = []
        for version, image in images.items():
            # The batch before may have had the same image.
            known = image if isinstance(image, ImageFeatures) else self._features.get(version)
            if known is not None:
                features[version] = known
            elif isinstance(image, Pixels):
                waiting.append((version, image))
        passed: list[tuple[FileVersion, Pixels]] = []
        patches = [self._pixels.patch_count(image) for _, image in waiting]
        for number, (version, image) in enumerate(waiting):
            passed.append((version, image))
            full = sum(patches[number + 1 - len(passed) : number + 2]) > PATCHES_PER_PASS
            if full or number == len(waiting) - 1:
                values = self._decoder.encode_images(
                    [self._pixels.patches(one) for _, one in passed], [(one.rows, one.columns) for _, one in passed]
                )
                for (made, one), value in zip(passed, values, strict=True):
                    features[made] = ImageFeatures(value, one.rows, one.columns, made)
                    self._features.put(made, features[made])
                passed = []
        return features

    def _in_batches(
        self, prompts: Sequence[EncodedPrompt], work: Callable[[Sequence[EncodedPrompt]], list[R]]
    ) -> list[R]:
        """`work` on runs of prompts of at most `_tokens_a_batch` tokens, which is halved when the device's memory does not do."""
        made: list[R] = []
        while len(made) < len(prompts):
            batch = _up_to(prompts[len(made) :], self._tokens_a_batch)
            answers = self._unless_out_of_memory(work, batch)
            if answers is None:
                self._use_less_memory(batch)
            else:
                made += answers
        return made

    @staticmethod
    def _unless_out_of_memory(work: Callable[[T], R], batch: T) -> R | None:
        try:
            return work(batch)
        except torch.OutOfMemoryError:
            return None

    def _use_less_memory(self, batch: Sequence[EncodedPrompt]) -> None:
        tokens = sum(map(len, batch))
        if len(batch) == 1 and not len(self._decoder.kept):
            raise GenerationFailed(
                prompts=1, reason=f"a prompt of {tokens} tokens does not fit the device's memory; take a smaller model or image size"
            )
        if len(batch) > 1:
            self._tokens_a_batch = max(tokens // 2, 1)
        else:
            self._decoder.kept.clear()
            self._features.clear_device()
        torch.cuda.empty_cache()
        logger.warning("out of memory with %d tokens; batches of %d from now on", tokens, self._tokens_a_batch)

    @torch.inference_mode()
    def _search(self, batch: Sequence[EncodedPrompt]) -> list[list[int]]:
        wanted = self._arguments
        logits, advance = self._decoder.read(batch, rows=wanted.num_beams, steps=wanted.max_new_tokens - 1)
        limits: dict[str, Any] = {"stop_tokens": self._stop_tokens, "max_new_tokens": wanted.max_new_tokens}
        if wanted.num_beams == 1:
            return greedy_search(logits, advance, **limits)
        return beam_search(logits, advance, beams=wanted.num_beams, length_penalty=wanted.length_penalty, **limits)

    def _text(self, prompt: ScoringPrompt) -> str:
        messages = self._template.messages(prompt.demonstrations, prompt.query)
        return self._processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def _token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self._processor.tokenizer(list(texts), add_special_tokens=False)["input_ids"]


def _order(prompt: ScoringPrompt) -> tuple[Any, ...]:
    shots = tuple((str(shot.image), shot.question, shot.answer or "") for shot in prompt.demonstrations)
    return len(shots), shots


def _up_to(prompts: Sequence[EncodedPrompt], tokens: int) -> Sequence[EncodedPrompt]:
    """The first of `prompts` that together have at most so many tokens, one at least."""
    total = 0
    for count, prompt in enumerate(prompts):
        total += len(prompt)
        if total > tokens and count:
            return prompts[:count]
    return prompts


def _one_ahead(executor: ThreadPoolExecutor | None, work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """`work` on each item, on the next one already while the caller uses what came of the last; without an executor, as it is asked."""
    if executor is None:
        yield from map(work, items)
        return
    coming = executor.submit(work, items[0]) if items else None
    for index in range(len(items)):
        assert coming is not None, "there is one for each item"
        made = coming.result()
        coming = executor.submit(work, items[index + 1]) if index + 1 < len(items) else None
        yield made
