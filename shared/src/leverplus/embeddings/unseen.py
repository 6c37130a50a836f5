"""A query outside every dataset."""

from __future__ import annotations

from typing import NamedTuple


class UnseenQuery(NamedTuple):
    """An image file's bytes (None where only the question is known) and a question; `name` is what errors call it."""

    image: bytes | None
    question: str
    name: str = "query"
