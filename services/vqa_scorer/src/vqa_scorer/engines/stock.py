"""Any image-text-to-text model of transformers, through its own processor and stock `generate`.

Slower than what a family gets that has a decoder here, and right for all: nothing is shared between prompts, every one is read
whole.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from leverplus.errors import GenerationFailed, InvalidConfig
from leverplus.images import read_image
from leverplus.prompts import PromptTemplate, Shot
from vqa_scorer.engines import EngineCounts, ScoringPrompt
from vqa_scorer.engines.decoding import GenerationArguments
from vqa_scorer.engines.probabilities import spellings

logger = logging.getLogger(__name__)


class StockModel:
    """A loaded model in eval mode with its processor, asked in batches of at most `batch_size` prompts of similar length.

    Fewer together where the device's memory asks for it. Two images are read for a trial: InvalidConfig for a model that does not
    go on from its prompt, and for a chat template or processor that cannot lay out `template`.
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
    ) -> None:
        if model.config.is_encoder_decoder:
            raise InvalidConfig(field="VLM", reason=f"{type(model).__name__} is an encoder-decoder; a decoder is needed")
        self._model = model
        self._processor = processor
        self._template = template
        self._batch_size = batch_size
        self.counts = EngineCounts()
        self._stop_tokens = set(stop_tokens)
        tokenizer = processor.tokenizer
        self._pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(stop_tokens))
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token_id = self._pad
        self._arguments = GenerationConfig(
            max_new_tokens=arguments.max_new_tokens,
            num_beams=arguments.num_beams,
            length_penalty=arguments.length_penalty,
            do_sample=False,
            early_stopping=False,
            eos_token_id=list(stop_tokens),
            pad_token_id=self._pad,
        )
        # `generate` fills what its arguments leave open from the model's own settings: there must be none.
        model.generation_config = GenerationConfig(eos_token_id=list(stop_tokens), pad_token_id=self._pad)
        self._try()

    def generate(self, prompts: Sequence[ScoringPrompt]) -> list[str]:
        """Raw texts in the order of `prompts`; InvalidInput names an image that cannot be read."""
        texts = [self._text(prompt) for prompt in prompts]
        lengths = [(len(prompt.demonstrations), len(text)) for prompt, text in zip(prompts, texts, strict=True)]
        by_length = sorted(range(len(prompts)), key=lengths.__getitem__, reverse=True)
        answers: dict[int, str] = {}
        while by_length:
            chosen = by_length[: self._batch_size]
            try:
                written = self._write([texts[index] for index in chosen], [prompts[index] for index in chosen])
            except torch.OutOfMemoryError as exc:
                if len(chosen) == 1:
                    reason = "a prompt does not fit the device's memory; take a smaller model or image size"
                    raise GenerationFailed(prompts=1, reason=reason) from exc
                self._batch_size = len(chosen) // 2
                logger.warning("%d prompts are too many for the device's memory; from now on %d", len(chosen), self._batch_size)
                continue
            answers |= zip(chosen, written, strict=True)
            self.counts = replace(self.counts, prompts=self.counts.prompts + len(chosen))
            del by_length[: len(chosen)]
        return [answers[index] for index in range(len(prompts))]

    def answer_probabilities(self, prompts: Sequence[ScoringPrompt], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        """P of each answer, as `engines.probabilities` defines it; each spelling reads its prompt anew."""
        return [self._of_one(prompt, own) for prompt, own in zip(prompts, answers, strict=True)]

    def _try(self) -> None:
        shot = Shot(Path(), "Which colour is this?", "red")
        text = self._text(ScoringPrompt((shot,), shot))
        white = Image.new("RGB", (64, 64), "white")
        try:
            inputs = self._prepared([text], [[white, white]])
        except (ValueError, TypeError, KeyError, IndexError) as exc:
            reason = f"the model's processor cannot read a prompt of {self._template.name!r} with two images: {exc}"
            raise InvalidConfig(field="LEVERPLUS_PROMPT", reason=reason) from exc
        self._run(inputs, GenerationConfig(max_new_tokens=1, do_sample=False, pad_token_id=self._pad))
        mark = getattr(self._processor, "image_token", None)
        if mark and text.count(mark) == 2 and text.rindex(mark) < text.index(shot.question):
            logger.warning(
                "the model's chat template puts the images of a turn before its text; LEVERPLUS_PROMPT=chat gives each "
                "demonstration a turn of its own"
            )

    def _write(self, texts: Sequence[str], prompts: Sequence[ScoringPrompt]) -> list[str]:
        written = self._run(self._inputs(texts, prompts), self._arguments)
        kept = [self._before_stop(row) for row in written.tolist()]
        return self._processor.tokenizer.batch_decode(kept, skip_special_tokens=True)

    def _of_one(self, prompt: ScoringPrompt, answers: Sequence[str]) -> list[float]:
        tokenizer = self._processor.tokenizer
        replies = [tokenizer(text, add_special_tokens=False)["input_ids"] for own in answers for text in spellings(own)]
        if not all(replies):
            raise ValueError("an answer has no token, so it has no probability")
        found: list[float] = []
        text = self._text(prompt)
        for start in range(0, len(replies), self._batch_size):
            rows = replies[start : start + self._batch_size]
            forced = _Forced(rows)
            inputs = self._inputs([text] * len(rows), [prompt] * len(rows))
            arguments = GenerationConfig(max_new_tokens=max(map(len, rows)), do_sample=False, pad_token_id=self._pad)
            self._run(inputs, arguments, logits_processor=LogitsProcessorList([forced]))
            found += forced.probabilities()
        likeliest: Iterator[float] = iter(found)
        return [max(next(likeliest) for _ in spellings(own)) for own in answers]

    def _text(self, prompt: ScoringPrompt) -> str:
        messages = self._template.messages(prompt.demonstrations, prompt.query)
        try:
            return self._processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except (TemplateError, TypeError) as exc:
            reason = f"the model's chat template cannot lay out prompts of {self._template.name!r}: {exc}"
            raise InvalidConfig(field="LEVERPLUS_PROMPT", reason=reason) from exc

    def _inputs(self, texts: Sequence[str], prompts: Sequence[ScoringPrompt]) -> Any:
        shown = [[shot.image for shot in (*prompt.demonstrations, prompt.query)] for prompt in prompts]
        images = {path: read_image(path) for path in {path for own in shown for path in own}}
        return self._prepared(texts, [[images[path] for path in own] for own in shown])

    def _prepared(self, texts: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> Any:
        begin: str | None = self._processor.tokenizer.bos_token
        inputs = self._processor(
            text=list(texts),
            images=[list(own) for own in images],
            padding=True,
            # A chat template that writes the first token itself must not get a second one.
            add_special_tokens=not (begin and texts[0].startswith(begin)),
            return_tensors="pt",
        )
        return inputs.to(self._model.device, self._model.dtype)

    @torch.inference_mode()
    def _run(self, inputs: Any, arguments: GenerationConfig, **options: Any) -> Tensor:
        """Token ids written behind the prompts, [B, at most max_new_tokens]."""
        written: Tensor = self._model.generate(**inputs, generation_config=arguments, **options)
        return written[:, inputs["input_ids"].shape[1] :]

    def _before_stop(self, tokens: Sequence[int]) -> list[int]:
        end = next((place for place, token in enumerate(tokens) if token in self._stop_tokens), len(tokens))
        return list(tokens[:end])


class _Forced(LogitsProcessor):
    """Makes row r of a generation write `rows[r]`, and sums up how likely the model found it."""

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self._rows = rows
        self._totals = [0.0] * len(rows)
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids [B, L], scores [B, V] → scores of which only the row's next token is no −∞."""
        # A row that has ended repeats its last token, uncounted.
        wanted = torch.tensor([row[min(self._step, len(row) - 1)] for row in self._rows], device=scores.device)[:, None]
        log_probs = scores.float().log_softmax(dim=-1).gather(1, wanted)[:, 0].tolist()
        for number, (row, value) in enumerate(zip(self._rows, log_probs, strict=True)):
            if self._step < len(row):
                self._totals[number] += value
        self._step += 1
        return torch.full_like(scores, -math.inf).scatter(1, wanted, 0.0)

    def probabilities(self) -> list[float]:
        """exp(mean log-probability) of each row; ArithmeticError where the model's logits were no numbers."""
        if not all(map(math.isfinite, self._totals)):
            raise ArithmeticError("the model gave a log-probability that is no finite number")
        return [math.exp(total / len(row)) for total, row in zip(self._totals, self._rows, strict=True)]
