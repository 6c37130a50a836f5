"""What the probabilities of a query's annotated answers say about a prompt.

    vqa_gt_prob = Σ over distinct answers of P(answer | prompt) · min(count / 3, 1)
    info_score  = P(answer | x, demonstrations, query) − P(answer | demonstrations, query)

The weight is the official metric's credit for an answer that `count` annotators gave. The InfoScore says what prepending the
demonstration x gains: of the pointer (x, a, b), its first item against (a, b). Both formulas are the reference's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

_FULL_CREDIT = 3
"""Annotators who must have given an answer for it to count in full."""


def answer_texts(answers: Iterable[str]) -> tuple[str, ...]:
    """Distinct answers as a model may write them: without spaces around them; blank ones, which no reply can be, left out."""
    return tuple(dict.fromkeys(text for answer in answers if (text := answer.strip())))


def gt_probability(answers: Iterable[str], probabilities: Mapping[str, float]) -> float | None:
    """vqa_gt_prob from the annotators' answers and P by `answer_texts`; None without an answer. Not below 0; may pass 1.

    KeyError for an answer whose probability is not given.
    """
    counts = Counter(text for answer in answers if (text := answer.strip()))
    if not counts:
        return None
    return sum(probabilities[text] * min(count / _FULL_CREDIT, 1.0) for text, count in counts.items())
