"""What the engine is asked for and what comes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from leverplus.store import ScoreKey, ScoreKind
from vqa_scorer.engines import ScoringPrompt

Outcome = str | Mapping[str, float]
"""Raw text, or answer -> P, as the work's kind says."""


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


def order(task: Task) -> tuple[bool, tuple[int, tuple[tuple[str, str, str], ...]]]:
    """Sorts tasks that share work side by side, each kind for itself, so that a batch has one kind while enough of it waits."""
    return bool(task.answers), task.prompt.order


def grouped(keys: Iterable[WorkKey]) -> dict[tuple[str, ScoreKind], list[ScoreKey]]:
    """By dataset and kind: what one call of the store takes."""
    groups: dict[tuple[str, ScoreKind], list[ScoreKey]] = {}
    for key in keys:
        groups.setdefault((key.dataset_digest, key.kind), []).append(key.score)
    return groups
