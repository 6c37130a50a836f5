"""Prompts through a Qwen2.5-VL in batches that fit the device, the next one prepared while it works on one."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from leverplus.errors import GenerationFailed, InvalidInput, LeverPlusError
from leverplus.images import FileVersion, file_version
from leverplus.prompts import PromptTemplate, Shot
from vqa_scorer.engines import EngineCounts, EnginePhase, ScoringPrompt
from vqa_scorer.engines.decoding import GenerationArguments, beam_search, greedy_search
from vqa_scorer.engines.features import FeatureCache, ImageFeatures
from vqa_scorer.engines.pixels import PixelReader, Pixels
from vqa_scorer.engines.prefixes import EncodedPrompt, Features, ImageShape
from vqa_scorer.engines.probabilities import answer_probabilities, spellings
from vqa_scorer.engines.qwen2_5_vl import TOKENS_PER_PASS, Decoder, encode

logger = logging.getLogger(__name__)

R = TypeVar("R")
T = TypeVar("T")

PATCHES_PER_PASS = 65_536
"""Of images that go through the vision tower together: 41 of 480 × 640 pixels."""
PIXELS_AHEAD = 1024
"""Images that may be decoded before their prompts are asked: about 1 MB each."""
_SHARE_OF_A_PASS = 0.3
_SHARE_OF_A_BATCH = 0.5
"""Of the memory that is free beside full caches; what is left over is for logits and fragments."""


@dataclass(frozen=True)
class Memory:
    """Bounds in bytes: image features on the device and in the host's memory, and keys and values of first demonstrations.

    None is a share of a GPU's memory; on a processor little, for it is the host's.
    """

    images: int | None = None
    images_on_host: int | None = None
    prefixes: int | None = None

    def on(self, device: torch.device) -> tuple[int, int, int]:
        """images, images on the host, prefixes"""
        if device.type == "cuda":
            whole = torch.cuda.get_device_properties(device).total_memory
            default = (whole // 24, 8 * 2**30, whole // 10)
        else:
            default = (48 * 2**20, 0, 96 * 2**20)
        images, images_on_host, prefixes = (
            own if stated is None else stated
            for stated, own in zip((self.images, self.images_on_host, self.prefixes), default, strict=True)
        )
        return images, images_on_host, prefixes


@dataclass(frozen=True)
class Decoded:
    """An image on its way to the vision tower."""

    version: FileVersion
    pixels: Pixels

    @property
    def shape(self) -> ImageShape:
        return ImageShape(self.version, self.pixels.rows, self.pixels.columns)


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
        memory: Memory,
    ) -> None:
        device: torch.device = model.device
        for_images, on_host, for_prefixes = memory.on(device)
        self._processor, self._template, self._arguments = processor, template, arguments
        self._placeholder: str = processor.image_token
        self._batch_size = batch_size
        self._stop_tokens = torch.tensor(stop_tokens, device=device)
        start = self._text(ScoringPrompt((), Shot(Path(), ""))).split(self._placeholder)[0]
        self._decoder = Decoder(model, shared=self._token_ids([start])[0], prefix_bytes=for_prefixes)
        self._pixels = PixelReader(processor.image_processor, device)
        self._features = FeatureCache(device_bytes=for_images, host_bytes=on_host)
        # On a processor the preparation would take the cores from the model.
        threads = min(16, os.cpu_count() or 1) if device.type == "cuda" else 0
        self._readers = ThreadPoolExecutor(threads, thread_name_prefix="image") if threads else None
        self._begun: dict[FileVersion, Future[Pixels]] = {}
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="prompt") if threads else None
        self.counts = EngineCounts()
        self._patches_a_pass = PATCHES_PER_PASS
        self._tokens_a_batch = sys.maxsize
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            # What torch holds without using it is free too.
            free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            room = max(free - for_images - for_prefixes, 0)
            self._decoder.tokens_a_pass = min(
                TOKENS_PER_PASS, max(int(room * _SHARE_OF_A_PASS) // self._decoder.bytes_a_token_read, 1)
            )
            self._tokens_a_batch = max(int(room * _SHARE_OF_A_BATCH) // self._decoder.bytes_a_token_kept, 1)

    def generate(self, prompts: Sequence[ScoringPrompt]) -> list[str | LeverPlusError]:
        """Raw texts in the order of `prompts`; InvalidInput in place of one whose image cannot be read."""
        texts: dict[int, str | LeverPlusError] = {}
        for indices, encoded, features, refused in self._encoded(prompts):
            texts |= refused
            if encoded:
                written = self._in_batches(encoded, partial(self._search, features))
                texts |= zip(indices, self._processor.tokenizer.batch_decode(written, skip_special_tokens=True), strict=True)
        return [texts[index] for index in range(len(prompts))]

    def answer_probabilities(self, prompts: Sequence[ScoringPrompt], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        """P of each answer, as `engines.probabilities` defines it. Raises InvalidInput, naming an image that cannot be read."""
        replies = [[self._token_ids(spellings(answer)) for answer in own] for own in answers]
        found: dict[int, list[float]] = {}
        for indices, encoded, features, refused in self._encoded(prompts):
            for error in refused.values():
                raise error
            own = {id(prompt): replies[index] for index, prompt in zip(indices, encoded, strict=True)}
            found |= zip(indices, self._in_batches(encoded, partial(self._weigh, features, own)), strict=True)
        return [found[index] for index in range(len(prompts))]

    def _encoded(
        self, prompts: Sequence[ScoringPrompt]
    ) -> Iterator[tuple[list[int], list[EncodedPrompt], Features, dict[int, LeverPlusError]]]:
        """Indices, encoded prompts and features of their images; prompts that begin alike come side by side. By index, why others
        cannot be asked."""
        order = sorted(range(len(prompts)), key=lambda index: prompts[index].order)
        chunks = [order[start : start + self._batch_size] for start in range(0, len(order), self._batch_size)]
        prepared = _one_ahead(self._ahead, lambda chunk: self._prepare([prompts[index] for index in chunk]), chunks)
        for chunk, (made, images) in zip(chunks, prepared, strict=True):
            with self._timed("images"):
                features = self._features_of(images)
            encoded = {index: one for index, one in zip(chunk, made, strict=True) if isinstance(one, EncodedPrompt)}
            refused = {index: one for index, one in zip(chunk, made, strict=True) if isinstance(one, LeverPlusError)}
            self._count(prompts=len(encoded), tokens=sum(map(len, encoded.values())))
            yield list(encoded), list(encoded.values()), features, refused

    def _prepare(
        self, prompts: Sequence[ScoringPrompt]
    ) -> tuple[list[EncodedPrompt | LeverPlusError], list[ImageFeatures | Decoded]]:
        """Tokens of prompts, or why one cannot be asked, and their images: decoded where features are not kept. On a GPU in a
        thread of its own."""
        paths = [tuple(shot.image for shot in (*prompt.demonstrations, prompt.query)) for prompt in prompts]
        images: dict[Path, ImageFeatures | Decoded] = {}
        broken: dict[Path, LeverPlusError] = {}
        missing: dict[Path, FileVersion] = {}
        for path in dict.fromkeys(path for own in paths for path in own):
            try:
                version = file_version(path)
            except InvalidInput as exc:
                broken[path] = exc
                continue
            if (kept := self._features.get(version)) is None:
                missing[path] = version
                self._begin_to_read(path, version)
            else:
                images[path] = kept
        for path, version in missing.items():
            begun = self._begun.pop(version, None)
            try:
                images[path] = Decoded(version, begun.result() if begun is not None else self._pixels.read(path))
            except InvalidInput as exc:
                broken[path] = exc
        made: list[EncodedPrompt | LeverPlusError] = []
        token_ids = self._token_ids([self._text(prompt) for prompt in prompts])
        for prompt, own, ids in zip(prompts, paths, token_ids, strict=True):
            fault = next((broken[path] for path in own if path in broken), None)
            if fault is None and ids.count(self._decoder.image_token) != len(own):
                fault = InvalidInput(
                    f"a question or answer holds the image placeholder {self._placeholder}: {prompt.query.question!r}"
                )
            made.append(fault or encode(ids, [images[path].shape for path in own], self._decoder.image_token))
        return made, list(images.values())

    def look_ahead(self, prompts: Sequence[ScoringPrompt]) -> None:
        """Begins to decode the images of prompts that will come next, as many as PIXELS_AHEAD allows; nothing on a processor."""
        if self._readers is None:
            return
        for path in dict.fromkeys(shot.image for prompt in prompts for shot in (*prompt.demonstrations, prompt.query)):
            if len(self._begun) >= PIXELS_AHEAD:
                return
            # A file that is missing is told of when its prompt is asked.
            with suppress(InvalidInput):
                version = file_version(path)
                if self._features.get(version) is None:
                    self._begin_to_read(path, version)

    def _begin_to_read(self, path: Path, version: FileVersion) -> None:
        """On a thread; on a processor it would take the cores from the model, so there an image is read when it is needed."""
        if self._readers is not None and version not in self._begun:
            self._begun[version] = self._readers.submit(self._pixels.read, path)
            while len(self._begun) > 2 * PIXELS_AHEAD:
                # What was foreseen and never came.
                self._begun.pop(next(iter(self._begun)), None)

    def _features_of(self, images: Sequence[ImageFeatures | Decoded]) -> dict[ImageShape, Tensor]:
        """Features of images, the decoded ones through the vision tower, so many at a time as its memory allows."""
        found: dict[ImageShape, Tensor] = {}
        waiting: list[Decoded] = []
        for image in images:
            # The batch before may have had the same image.
            known = image if isinstance(image, ImageFeatures) else self._features.get(image.version)
            if known is not None:
                found[image.shape] = known.values
                self._count(image_hits=1)
            elif isinstance(image, Decoded):
                waiting.append(image)
        while waiting:
            passed = self._one_pass(waiting)
            values = self._unless_out_of_memory(self._encode, passed)
            if values is None:
                self._encode_fewer(passed)
                continue
            waiting = waiting[len(passed) :]
            self._count(images_encoded=len(passed))
            for image, value in zip(passed, values, strict=True):
                found[image.shape] = value
                self._features.put(image.version, ImageFeatures(image.shape, value))
        return found

    def _one_pass(self, images: Sequence[Decoded]) -> Sequence[Decoded]:
        """The first of `images` that together have at most `_patches_a_pass` patches, one at least."""
        patches = 0
        for count, image in enumerate(images):
            patches += self._pixels.patch_count(image.pixels)
            if count and patches > self._patches_a_pass:
                return images[:count]
        return images

    def _encode(self, images: Sequence[Decoded]) -> list[Tensor]:
        patches = self._pixels.patches([image.pixels for image in images])
        return self._decoder.encode_images(patches, [image.shape for image in images])

    def _encode_fewer(self, images: Sequence[Decoded]) -> None:
        patches = sum(self._pixels.patch_count(image.pixels) for image in images)
        if len(images) == 1:
            raise GenerationFailed(prompts=1, reason=f"an image of {patches} patches does not fit the device's memory")
        self._patches_a_pass = patches // 2
        torch.cuda.empty_cache()
        logger.warning("out of memory with %d images; passes of %d patches from now on", len(images), self._patches_a_pass)

    def _in_batches(self, prompts: Sequence[EncodedPrompt], work: Callable[[Sequence[EncodedPrompt]], list[R]]) -> list[R]:
        """`work` on runs of prompts of at most `_tokens_a_batch` tokens, which is halved when the device's memory does not do."""
        made: list[R] = []
        was_cleared = False
        while len(made) < len(prompts):
            batch = even_run(prompts[len(made) :], self._tokens_a_batch)
            answers = self._unless_out_of_memory(work, batch)
            if answers is not None:
                made += answers
            elif len(batch) > 1 or not was_cleared:
                was_cleared = len(batch) == 1
                self._use_less_memory(batch)
            else:
                tokens = len(batch[0])
                reason = f"a prompt of {tokens} tokens does not fit the device's memory; take a smaller model or image size"
                raise GenerationFailed(prompts=1, reason=reason)
        return made

    @staticmethod
    def _unless_out_of_memory(work: Callable[[T], R], batch: T) -> R | None:
        try:
            return work(batch)
        except torch.OutOfMemoryError:
            return None

    def _use_less_memory(self, batch: Sequence[EncodedPrompt]) -> None:
        tokens = sum(map(len, batch))
        if len(batch) > 1:
            self._tokens_a_batch = max(tokens // 2, 1)
        else:
            self._decoder.kept.clear()
            self._features.clear_device()
        torch.cuda.empty_cache()
        logger.warning("out of memory with %d tokens; batches of %d from now on", tokens, self._tokens_a_batch)

    def _weigh(
        self, features: Features, replies: Mapping[int, list[list[list[int]]]], batch: Sequence[EncodedPrompt]
    ) -> list[list[float]]:
        asked = [replies[id(prompt)] for prompt in batch]
        with self._timed("read"):
            return answer_probabilities(partial(self._decoder.read, features=features), batch, asked, batch_size=self._batch_size)

    @torch.inference_mode()
    def _search(self, features: Features, batch: Sequence[EncodedPrompt]) -> list[list[int]]:
        wanted = self._arguments
        with self._timed("read"):
            logits, advance = self._decoder.read(batch, features, rows=wanted.num_beams, steps=wanted.max_new_tokens - 1)
        limits: dict[str, Any] = {"stop_tokens": self._stop_tokens, "max_new_tokens": wanted.max_new_tokens}
        with self._timed("decode"):
            if wanted.num_beams == 1:
                return greedy_search(logits, advance, **limits)
            return beam_search(logits, advance, beams=wanted.num_beams, length_penalty=wanted.length_penalty, **limits)

    @contextmanager
    def _timed(self, phase: EnginePhase) -> Generator[None]:
        """Adds to the phase's seconds. A GPU is waited for at the end, which costs little beside the work."""
        started = time.perf_counter()
        yield
        if self._decoder.device.type == "cuda":
            torch.cuda.synchronize(self._decoder.device)
        seconds = {**self.counts.seconds, phase: self.counts.seconds.get(phase, 0.0) + time.perf_counter() - started}
        self.counts = replace(
            self.counts, seconds=seconds, prefix_hits=self._decoder.prefix_hits, prefix_misses=self._decoder.prefix_misses
        )

    def _count(self, **amounts: int) -> None:
        self.counts = replace(self.counts, **{name: getattr(self.counts, name) + amount for name, amount in amounts.items()})

    def _text(self, prompt: ScoringPrompt) -> str:
        messages = self._template.messages(prompt.demonstrations, prompt.query)
        return self._processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def _token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self._processor.tokenizer(list(texts), add_special_tokens=False)["input_ids"]


def even_run(prompts: Sequence[EncodedPrompt], tokens: int) -> Sequence[EncodedPrompt]:
    """The first of as many runs, all about as long, as it takes for each to have at most so many tokens, or one prompt."""
    total = sum(map(len, prompts))
    share = total / math.ceil(total / tokens)
    taken = 0
    for count, prompt in enumerate(prompts):
        taken += len(prompt)
        if count and (taken > tokens or taken > share + len(prompt) / 2):
            return prompts[:count]
    return prompts


def _one_ahead(executor: ThreadPoolExecutor | None, work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """`work` on each item; with an executor on the next one already while the caller uses what came of the last."""
    if executor is None:
        yield from map(work, items)
        return
    coming = executor.submit(work, items[0]) if items else None
    for index in range(len(items)):
        assert coming is not None, "there is one for each item"
        made = coming.result()
        coming = executor.submit(work, items[index + 1]) if index + 1 < len(items) else None
        yield made
