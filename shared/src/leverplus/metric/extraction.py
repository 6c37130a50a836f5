"""From what a model generated to the answer that is judged."""

from __future__ import annotations

import re

POSTPROCESSING = {"name": "short-answer", "version": 1}

# A model that goes on after its answer goes on with the prompt's own words.
_NEXT_TURN = re.compile("Question|Answer|Short")


def extract_answer(raw: str) -> str:
    """The short answer in a generated text: before the first Question, Answer or Short, before ", ", its first line."""
    before_next_turn = _NEXT_TURN.split(raw, maxsplit=1)[0]
    lines = before_next_turn.split(", ", maxsplit=1)[0].strip().splitlines()
    return lines[0].strip() if lines else ""
