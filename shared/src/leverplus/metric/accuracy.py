"""VQA accuracy by annotators' agreement, and a score that says how it was obtained.

accuracy = mean over annotators i of min(1, #{j ≠ i : answer_j = prediction} / 3): 1, 2, 3 and 4 or more of ten equal
answers give 0.3, 0.6, 0.9 and 1.0. Annotators are told apart by index. (The published Python compares annotator records as
values, so that in files without an `answer_id` equal answers are dropped together; we don't.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from leverplus.errors import InvalidConfig, InvalidInput
from leverplus.metric.extraction import PostprocessingName, named_postprocessing
from leverplus.metric.normalisation import FLAVOURS, Flavour, clean_whitespace, normalise_answer

ScoreMode = Literal["file", "fallback", "error"]

ANNOTATORS = 10
_MATCHES_FOR_FULL_MARKS = 3


@dataclass(frozen=True, slots=True)
class VqaScore:
    """`correct` 0 or 1, `accuracy` in [0, 1]; both None exactly where `mode` is "error".

    mode "file": the official accuracy over ten annotators; "fallback": string comparison with one to nine answers;
    "error": there are no answers, so nothing is known.
    """

    correct: int | None
    accuracy: float | None
    mode: ScoreMode


def vqa_accuracy(prediction: str, answers: Sequence[str], flavour: Flavour = "official") -> float:
    """Official VQA accuracy in [0, 1] of one prediction against the annotators' answers.

    The flavours differ on unanimous answers: "official" then compares without normalising, "lever_plus" always normalises.
    The formula holds for any number of answers, but fewer than four can never give 1; `score_answer` knows.
    Raises InvalidInput without answers or if something is no text, InvalidConfig for an unknown flavour.
    """
    _check(prediction, answers, flavour)
    if not answers:
        raise InvalidInput("there is no accuracy without annotators' answers; score_answer() reports such items as unknown")
    return _accuracy(clean_whitespace(prediction), [clean_whitespace(answer) for answer in answers], flavour)


def score_answer(prediction: str, answers: Sequence[str], flavour: Flavour = "official") -> VqaScore:
    """The score of one prediction, with its provenance.

    Ten answers (or more): the accuracy of the flavour, correct where it is above 0. One to nine: after the metric's normalisation
    an equal answer gives 1.0, one that holds the other as whole words 0.5, else 0. None: unknown. A prediction without
    any text is wrong in either mode. Raises as `vqa_accuracy`.
    """
    _check(prediction, answers, flavour)
    if not answers:
        return VqaScore(None, None, "error")
    text = clean_whitespace(prediction)
    cleaned = [clean_whitespace(answer) for answer in answers]
    if len(answers) >= ANNOTATORS:
        accuracy = _accuracy(text, cleaned, flavour) if text else 0.0
        return VqaScore(int(accuracy > 0), accuracy, "file")
    accuracy = _similarity(normalise_answer(text).split(), [normalise_answer(answer).split() for answer in cleaned])
    return VqaScore(int(accuracy > 0), accuracy, "fallback")


def metric_fingerprint(flavour: Flavour = "official", postprocessing: PostprocessingName = "short-answer") -> dict[str, Any]:
    """The `metric` part of a fingerprint. InvalidConfig for an unknown flavour or post-processing."""
    _check_flavour(flavour)
    found = named_postprocessing(postprocessing).fingerprint()
    return {"name": "vqa_accuracy", "version": 1, "flavour": flavour, "postprocessing": found}


def _accuracy(prediction: str, answers: list[str], flavour: Flavour) -> float:
    if flavour == "lever_plus" or len(set(answers)) > 1:
        prediction = normalise_answer(prediction)
        answers = [normalise_answer(answer) for answer in answers]
    matches = answers.count(prediction)
    if matches > _MATCHES_FOR_FULL_MARKS:
        return 1.0
    # The mean above, for 3 matches or fewer: each match is seen by all annotators but the one who gave it.
    return matches * (len(answers) - 1) / (_MATCHES_FOR_FULL_MARKS * len(answers))


def _similarity(prediction: list[str], answers: list[list[str]]) -> float:
    if not prediction:
        return 0.0
    if prediction in answers:
        return 1.0
    contained = any(answer and (_holds(prediction, answer) or _holds(answer, prediction)) for answer in answers)
    return 0.5 if contained else 0.0


def _holds(words: list[str], part: list[str]) -> bool:
    return any(words[start : start + len(part)] == part for start in range(len(words) - len(part) + 1))


def _check(prediction: str, answers: Sequence[str], flavour: str) -> None:
    _check_flavour(flavour)
    if isinstance(answers, str):
        raise InvalidInput(f"the answers are one text, {answers!r}, where a list of texts is expected")
    for text in (prediction, *answers):
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance] callers read foreign files
            raise InvalidInput(f"{text!r} is no text: predictions and answers must be strings")


def _check_flavour(flavour: str) -> None:
    if flavour not in FLAVOURS:
        raise InvalidConfig(field="metric flavour", reason=f"{flavour!r} is unknown; there are: {', '.join(FLAVOURS)}")
