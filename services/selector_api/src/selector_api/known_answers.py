"""Answers of GET /select that were given before."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from fastapi import Request

from selector_api.answers import Way
from selector_api.library import Library
from selector_api.serving import Served

_ANSWERS = 8_192
_LONGEST_BYTES = 8_192
"""Of question and answer together. Both bounds: 64 MiB at the very most, some 8 as answers are."""


class KnownAnswer(NamedTuple):
    """`alias` is None where a checkpoint was asked for by its id."""

    served: Served
    alias: str | None
    way: Way
    body: bytes


class KnownAnswers:
    """By the query string as it was sent: it says all that an answer depends on, but for what its alias stands for now."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._answers: OrderedDict[bytes, KnownAnswer] = OrderedDict()
        self.hits = 0

    def find(self, request: Request) -> KnownAnswer | None:
        """The answer, if what was served then would be now."""
        asked: bytes = request.scope["query_string"]
        known = self._answers.get(asked)
        if known is None:
            return None
        served, library = known.served, self._library
        now = library.checkpoint(served.info.checkpoint_id) if known.alias is None else library.current(known.alias)
        if now is not served:
            return None
        prefilter = known.way.prefilter
        if prefilter is not None and library.prefilter(served, prefilter.description["name"]) is not prefilter:
            return None
        self._answers.move_to_end(asked)
        self.hits += 1
        return known

    def keep(self, request: Request, answer: KnownAnswer) -> KnownAnswer:
        """The answer, which is found from now on if it is not too long."""
        asked: bytes = request.scope["query_string"]
        if len(answer.body) + len(asked) <= _LONGEST_BYTES:
            self._answers[asked] = answer
            if len(self._answers) > _ANSWERS:
                self._answers.popitem(last=False)
        return answer
