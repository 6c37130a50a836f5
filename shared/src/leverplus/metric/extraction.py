"""From what a model generated to the answer that is judged: named, versioned values, like prompt templates."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from leverplus.errors import InvalidConfig

PostprocessingName = Literal["short-answer", "first-line", "none"]

# A model that goes on after its answer goes on with the prompt's own words.
_NEXT_TURN = re.compile("Question|Answer|Short")


@dataclass(frozen=True)
class Postprocessing:
    """How the answer is found in a generated text: a part of the metric fingerprint, applied to texts as they are stored.

    Whoever changes what `extract` gives for any text gives it a new version.
    """

    name: PostprocessingName
    version: int
    extract: Callable[[str], str]

    def fingerprint(self) -> dict[str, Any]:
        return {"name": self.name, "version": self.version}


def _first_line(text: str) -> str:
    """The first line that is not blank, without spaces around it."""
    lines = text.strip().splitlines()
    return lines[0].strip() if lines else ""


def _short_answer(raw: str) -> str:
    """Before the first Question, Answer or Short, before ", ", its first line."""
    before_next_turn = _NEXT_TURN.split(raw, maxsplit=1)[0]
    return _first_line(before_next_turn.split(", ", maxsplit=1)[0])


SHORT_ANSWER = Postprocessing("short-answer", 1, _short_answer)
FIRST_LINE = Postprocessing("first-line", 1, _first_line)
NONE = Postprocessing("none", 1, str)

POSTPROCESSINGS: dict[str, Postprocessing] = {each.name: each for each in (SHORT_ANSWER, FIRST_LINE, NONE)}


def named_postprocessing(name: str) -> Postprocessing:
    """The post-processing of that name, or InvalidConfig listing those that exist."""
    if name not in POSTPROCESSINGS:
        raise InvalidConfig(field="postprocessing", reason=f"{name!r} is unknown; there are: {', '.join(POSTPROCESSINGS)}")
    return POSTPROCESSINGS[name]


def extract_answer(raw: str, postprocessing: PostprocessingName = "short-answer") -> str:
    """The answer in a generated text: as `short-answer` its first line, cut before ", " and before the prompt's own words;
    as `first-line` its first line that is not blank; as `none` the whole text."""
    return named_postprocessing(postprocessing).extract(raw)
