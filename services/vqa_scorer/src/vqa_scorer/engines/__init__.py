"""Engines: what answers a prompt. This package needs neither a web framework nor a queue, so it runs on a bare GPU host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from leverplus.errors import LeverPlusError
from leverplus.prompts import Shot


@dataclass(frozen=True)
class ScoringPrompt:
    """A query behind its demonstrations, in prompt order; the last demonstration stands next to the query."""

    demonstrations: tuple[Shot, ...]
    query: Shot

    @property
    def order(self) -> tuple[int, tuple[tuple[str, str, str], ...]]:
        """Sorts prompts of like length that begin alike side by side: what they share can then be read once."""
        shots = tuple((str(shot.image), shot.question, shot.answer or "") for shot in self.demonstrations)
        return len(shots), shots


class Engine(Protocol):
    """A VLM. All methods are called from one thread; `load` comes first."""

    def load(self) -> None:
        """Makes the engine ready to generate; raises if it cannot be."""
        ...

    def generate(self, prompts: Sequence[ScoringPrompt]) -> Sequence[str | LeverPlusError]:
        """The raw text of each prompt, in the order of `prompts`, or why there is none where the others have one.

        Raises what concerns the batch as a whole.
        """
        ...

    @property
    def batch_size(self) -> int:
        """How many prompts are well answered together; known once it is loaded."""
        ...

    @property
    def has_probabilities(self) -> bool:
        """Whether `answer_probabilities` can be asked for."""
        ...

    def answer_probabilities(self, prompts: Sequence[ScoringPrompt], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        """For each prompt P of each of its answers, 0 to 1: exp(mean log-probability of the answer's tokens).

        `engines.probabilities` says which tokens these are. Never called where `has_probabilities` is false.
        """
        ...

    def generation_fingerprint(self) -> dict[str, Any]:
        """All that decides the text besides the prompt's items: the `generation` part of a fingerprint."""
        ...

    def reserved_texts(self) -> frozenset[str]:
        """What no question or answer may hold, because the model reads it as a mark of its own: an image, a turn's end."""
        ...


@runtime_checkable
class LooksAhead(Protocol):
    """An engine that can make use of knowing what will probably be asked next."""

    def look_ahead(self, prompts: Sequence[ScoringPrompt]) -> None:
        """Returns at once, and raises nothing: what is wrong with a prompt is said when it is asked."""
        ...


EnginePhase = Literal["images", "read", "decode"]


@dataclass(frozen=True)
class EngineCounts:
    """What an engine did since it was made; every number only grows.

    `prompts` were read; `tokens` are theirs, images' included, whether or not a cache spared reading them. `images_encoded` went
    through the vision tower, `image_hits` were kept from before; `prefix_hits` and `prefix_misses` are prompts whose first
    demonstration's keys and values were kept, and were not. `seconds`: images is encoding them, read is making the first
    token, decode the others.
    """

    prompts: int = 0
    tokens: int = 0
    prefix_hits: int = 0
    prefix_misses: int = 0
    images_encoded: int = 0
    image_hits: int = 0
    seconds: Mapping[EnginePhase, float] = field(default_factory=dict["EnginePhase", float])


@runtime_checkable
class Counting(Protocol):
    """An engine that counts what it does."""

    def counts(self) -> EngineCounts:
        """So far; called from any thread."""
        ...
