from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from leverplus.errors import InvalidConfig
from leverplus.fingerprint import digest
from leverplus.prompts import CHAT, SHORT_ANSWER, TEMPLATES, PromptTemplate, Shot, template

A, B = Shot(Path("a.png"), "colour?", "red"), Shot(Path("b.png"), "shape {x}?", "{round}")
QUERY = Shot(Path("q.png"), "and this?")
IMAGE = {"type": "image"}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def test_short_answer_is_one_turn() -> None:
    system, user = SHORT_ANSWER.messages([A, B], QUERY)
    assert system == {"role": "system", "content": [text(SHORT_ANSWER.system)]}
    assert user["role"] == "user"
    assert user["content"] == [
        IMAGE,
        text("Question: colour? Short answer: red\n"),
        IMAGE,
        text("Question: shape {x}? Short answer: {round}\n"),
        IMAGE,
        text("Question: and this? Short answer:"),
    ]


def test_chat_is_one_turn_a_shot() -> None:
    system, *turns = CHAT.messages([A, B], QUERY)
    assert system == {"role": "system", "content": [text(CHAT.system)]}
    assert turns == [
        {"role": "user", "content": [IMAGE, text("colour?")]},
        {"role": "assistant", "content": [text("red")]},
        {"role": "user", "content": [IMAGE, text("shape {x}?")]},
        {"role": "assistant", "content": [text("{round}")]},
        {"role": "user", "content": [IMAGE, text("and this?")]},
    ]


def test_zero_shot_asks_the_query_alone() -> None:
    assert CHAT.messages([], QUERY)[1:] == [{"role": "user", "content": [IMAGE, text("and this?")]}]


def test_templates_are_named_and_told_apart() -> None:
    assert template("chat") is CHAT
    assert template("short-answer") is SHORT_ANSWER
    with pytest.raises(InvalidConfig, match="there are: short-answer, chat"):
        template("long")
    assert CHAT.fingerprint()["turns"] == "per-shot"


def test_scores_stored_with_short_answer_are_still_found() -> None:
    assert digest(SHORT_ANSWER.fingerprint()) == "feb8799b31acd4e0299c394cebc41d6a2ca171983462fa4e43a970b0633d5d2b"


@pytest.mark.parametrize("known", TEMPLATES.values(), ids=list(TEMPLATES))
def test_a_template_is_found_again_in_its_fingerprint(known: PromptTemplate) -> None:
    assert PromptTemplate.from_fingerprint(known.fingerprint()) == known


@pytest.mark.parametrize("changes", [{"name": None}, {"turns": "both"}, {"colour": "red"}])
def test_a_fingerprint_of_no_template_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig, match="a fingerprint of no prompt template"):
        PromptTemplate.from_fingerprint({**CHAT.fingerprint(), **changes})
