"""Ten annotators for a true answer: most give it, some spell it differently, a few are wrong."""

from __future__ import annotations

from random import Random

from leverplus.dataset.invented_words.words import pick

ANNOTATORS = 10
_VARIANT, _MISSPELT, _SLIP, _SLIP_WHERE_CONTESTED = 0.10, 0.03, 0.03, 0.30
_CONTESTED = 0.08
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def annotate(random: Random, answer: str, slip: str) -> tuple[str, ...]:
    """Ten answers of which `answer`, letter for letter, is the commonest.

    About one in ten is a variant that the metric takes for the same. `slip` is the mistake that this item invites: rare on most
    items, three of ten on one item in twelve, so that it earns part of the marks there. A misspelt word earns none of its own.
    """
    contested = random.random() < _CONTESTED
    slips = _SLIP_WHERE_CONTESTED if contested else _SLIP
    while True:
        given = tuple(_one(random.random(), random, answer, slip, slips) for _ in range(ANNOTATORS))
        if given.count(answer) > ANNOTATORS // 2:
            return given


def _one(draw: float, random: Random, answer: str, slip: str, slips: float) -> str:
    if draw < slips:
        return slip
    if draw < slips + _MISSPELT:
        return _misspelt(answer)
    if draw < slips + _MISSPELT + _VARIANT:
        return _variant(random, answer)
    return answer


def _variant(random: Random, answer: str) -> str:
    """Another way to write the same."""
    if answer.isdigit():
        return pick(random, (_NUMBER_WORDS[int(answer)], f"{answer}."))
    if " " in answer:
        return pick(random, (answer.capitalize(), answer.replace(" ", ", ")))
    return pick(random, (answer.capitalize(), f"{answer}.", f"the {answer}"))


def _misspelt(answer: str) -> str:
    """The last letter twice: no word of the vocabulary is written so; a digit becomes no digit."""
    return answer + answer[-1]
