"""Prompt templates: named, versioned values that turn demonstrations and a query into chat messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leverplus.errors import InvalidConfig


@dataclass(frozen=True)
class Shot:
    """One solved or unsolved example of a prompt; the query has no answer."""

    image: Path
    question: str
    answer: str | None = None


@dataclass(frozen=True)
class PromptTemplate:
    """One user turn: image and solved question for each demonstration, then image and open question of the query.

    `question` and `answered` are format strings over {question} and {answer}. Both are part of the generation
    fingerprint, with the name and version.
    """

    name: str
    version: int
    system: str
    answered: str
    question: str

    def messages(self, demonstrations: Sequence[Shot], query: Shot) -> list[dict[str, Any]]:
        """Chat messages in the form that transformers' chat templates take; images are placeholders in prompt order."""
        content: list[dict[str, Any]] = []
        for shot in demonstrations:
            content.append({"type": "image"})
            content.append({"type": "text", "text": self.answered.format(question=shot.question, answer=shot.answer)})
        content.append({"type": "image"})
        content.append({"type": "text", "text": self.question.format(question=query.question)})
        return [
            {"role": "system", "content": [{"type": "text", "text": self.system}]},
            {"role": "user", "content": content},
        ]

    def fingerprint(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "version": self.version,
            "system": self.system,
            "answered": self.answered,
            "question": self.question,
        }


SHORT_ANSWER = PromptTemplate(
    name="short-answer",
    version=1,
    system="Answer the last question in one or a few words, as the examples do.",
    answered="Question: {question} Short answer: {answer}\n",
    question="Question: {question} Short answer:",
)

TEMPLATES = {template.name: template for template in (SHORT_ANSWER,)}


def template(name: str) -> PromptTemplate:
    """The template of that name, or InvalidConfig listing those that exist."""
    if name not in TEMPLATES:
        raise InvalidConfig(field="prompt template", reason=f"{name!r} is unknown; there are: {', '.join(TEMPLATES)}")
    return TEMPLATES[name]
