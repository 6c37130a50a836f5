"""A deterministic engine without a model, for tests and for trying the service."""

from __future__ import annotations

import time
from collections.abc import Sequence
from threading import Event
from typing import Any

from vqa_scorer.engines import EngineCounts, ScoringPrompt


class EchoEngine:
    """Answers what the last demonstration answers; without demonstrations, `zero_shot`. P of an answer that m of n demonstrations
    give is (m + 1) / (n + 2).

    `delay_s` is waited in every batch; `gate`, if given, must be set before a batch goes on (at most 30 s); `failure` and
    `load_failure` are raised. `reserved` are texts that no prompt may hold. `batches` records what was asked, `weighed`
    what probabilities were asked for; neither is kept with `record` false. `counts` takes a word for a token.
    """

    def __init__(
        self,
        *,
        zero_shot: str = "yes",
        delay_s: float = 0.0,
        gate: Event | None = None,
        failure: Exception | None = None,
        load_failure: Exception | None = None,
        reserved: frozenset[str] = frozenset(),
        has_probabilities: bool = True,
        record: bool = True,
        batch_size: int = 32,
    ) -> None:
        self.batch_size = batch_size
        self.zero_shot = zero_shot
        self.delay_s = delay_s
        self.gate = gate
        self.failure = failure
        self.load_failure = load_failure
        self.reserved = reserved
        self.has_probabilities = has_probabilities
        self.record = record
        self.started = Event()
        self._counts = EngineCounts()
        self.batches: list[list[ScoringPrompt]] = []
        self.weighed: list[list[tuple[ScoringPrompt, tuple[str, ...]]]] = []

    def load(self) -> None:
        if self.load_failure is not None:
            raise self.load_failure

    def generate(self, prompts: Sequence[ScoringPrompt]) -> list[str]:
        if self.record:
            self.batches.append(list(prompts))
        self._work(prompts)
        return [str(prompt.demonstrations[-1].answer) if prompt.demonstrations else self.zero_shot for prompt in prompts]

    def answer_probabilities(self, prompts: Sequence[ScoringPrompt], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        if self.record:
            self.weighed.append([(prompt, tuple(own)) for prompt, own in zip(prompts, answers, strict=True)])
        self._work(prompts)
        shown = [[shot.answer for shot in prompt.demonstrations] for prompt in prompts]
        return [
            [(given.count(answer) + 1) / (len(given) + 2) for answer in own] for given, own in zip(shown, answers, strict=True)
        ]

    def _work(self, prompts: Sequence[ScoringPrompt]) -> None:
        self.started.set()
        began = time.perf_counter()
        if self.gate is not None and not self.gate.wait(timeout=30):
            raise TimeoutError("the gate was not opened within 30 s")
        if self.delay_s:
            time.sleep(self.delay_s)
        if self.failure is not None:
            raise self.failure
        shots = [shot for prompt in prompts for shot in (*prompt.demonstrations, prompt.query)]
        words = sum(len(f"{shot.question} {shot.answer or ''}".split()) for shot in shots)
        before, seconds = self._counts, time.perf_counter() - began
        self._counts = EngineCounts(
            prompts=before.prompts + len(prompts),
            tokens=before.tokens + words,
            seconds={"read": before.seconds.get("read", 0.0) + seconds},
        )

    def counts(self) -> EngineCounts:
        return self._counts

    def generation_fingerprint(self) -> dict[str, Any]:
        return {"vlm": {"model_type": "echo", "weights_sha256": None}, "arguments": {"zero_shot": self.zero_shot}}

    def reserved_texts(self) -> frozenset[str]:
        return self.reserved
