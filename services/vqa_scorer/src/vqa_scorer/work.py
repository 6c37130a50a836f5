"""What the engine is asked for and what comes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from leverplus.store import ScoreKey, ScoreKind
from vqa_scorer.engines import ScoringPrompt

Outcome = str | Mapping[str, float]
"""Raw text, or answer -> P, as the work's kind says."""

_CHARACTERS_PER_IMAGE = 200
_APART = 1_000_000_000


@dataclass(frozen=True)
class WorkKey:
    """One thing to be known of a pointer; the generation is the process's own."""

    dataset_digest: str
    score: ScoreKey
    kind: ScoreKind = "text"


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


def grouped(keys: Iterable[WorkKey]) -> dict[tuple[str, ScoreKind], list[ScoreKey]]:
    """By dataset and kind: what one call of the store takes."""
    groups: dict[tuple[str, ScoreKind], list[ScoreKey]] = {}
    for key in keys:
        groups.setdefault((key.dataset_digest, key.kind), []).append(key.score)
    return groups
