"""What the engine is asked for and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from leverplus.store import ScoreKey
from vqa_scorer.engines import ScoringPrompt

Kind = Literal["text", "probabilities"]
Outcome = str | Mapping[str, float]
"""Raw text, or answer -> P, as the work's kind says."""

_CHARACTERS_PER_IMAGE = 200
_APART = 1_000_000_000


@dataclass(frozen=True)
class WorkKey:
    """One thing to be known of a pointer; the generation is the process's own."""

    dataset_digest: str
    score: ScoreKey
    kind: Kind = "text"


@dataclass(frozen=True)
class Task:
    """A prompt to answer, or, with `answers`, behind which their probabilities are asked for."""

    prompt: ScoringPrompt
    answers: tuple[str, ...] = ()


def rough_length(task: Task) -> int:
    """Characters of a prompt, by which alike ones are batched; a picture counts as many as a long question.

    Tasks of the other kind are far away, so that a batch has one kind as long as enough of it waits.
    """
    shots = (*task.prompt.demonstrations, task.prompt.query)
    characters = sum(_CHARACTERS_PER_IMAGE + len(shot.question) + len(shot.answer or "") for shot in shots)
    return characters + (_APART if task.answers else 0)
