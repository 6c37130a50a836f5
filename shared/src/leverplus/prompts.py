"""Prompt templates: named, versioned values that turn demonstrations and a query into chat messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from leverplus.errors import InvalidConfig

Turns = Literal["one", "per-shot"]


class Example(Protocol):
    """What a template shows of an example, besides its image: a `Shot`, or an item of a dataset."""

    @property
    def question(self) -> str: ...

    @property
    def answer(self) -> str | None: ...


@dataclass(frozen=True)
class Unsolved:
    """A question whose image lies in no file."""

    question: str
    answer: None = None


@dataclass(frozen=True)
class Shot:
    """One solved or unsolved example of a prompt; the query has no answer."""

    image: Path
    question: str
    answer: str | None = None


@dataclass(frozen=True)
class PromptTemplate:
    """How demonstrations and the query are laid out: a named, versioned value that is part of the generation fingerprint.

    turns "one": a single user turn holds image and `answered` for each demonstration, then image and `question` of the
    query. turns "per-shot": each demonstration is a user turn with image and `question` and an assistant turn with
    `answered`, and the query a last user turn. `question` and `answered` are format strings over {question} and {answer}.
    """

    name: str
    version: int
    system: str
    answered: str
    question: str
    turns: Turns = "one"

    @classmethod
    def from_fingerprint(cls, value: Mapping[str, Any]) -> PromptTemplate:
        """Inverse of `fingerprint`: the prompt as it was scored, whatever is called by its name now. InvalidConfig."""
        try:
            found = cls(**value)
        except TypeError as exc:
            raise InvalidConfig(field="prompt", reason=f"a fingerprint of no prompt template: {exc}") from exc
        texts: list[Any] = [found.name, found.system, found.answered, found.question]
        if found.turns not in get_args(Turns) or not all(isinstance(text, str) for text in texts):
            raise InvalidConfig(field="prompt", reason=f"a fingerprint of no prompt template: {dict(value)!r}")
        return found

    def messages(self, demonstrations: Sequence[Example], query: Example) -> list[dict[str, Any]]:
        """Chat messages in the form that transformers' chat templates take; images are placeholders in prompt order."""
        solved = [self.answered.format(question=shot.question, answer=shot.answer) for shot in demonstrations]
        asked = _shown(self.question.format(question=query.question))
        system = {"role": "system", "content": [_text(self.system)]}
        if self.turns == "one":
            shown = [part for text in solved for part in _shown(text)]
            return [system, {"role": "user", "content": [*shown, *asked]}]
        messages = [system]
        for shot, text in zip(demonstrations, solved, strict=True):
            messages.append({"role": "user", "content": _shown(self.question.format(question=shot.question))})
            messages.append({"role": "assistant", "content": [_text(text)]})
        return [*messages, {"role": "user", "content": asked}]

    def fingerprint(self) -> dict[str, Any]:
        """`turns` is left out of the one-turn form, whose scores were stored before there was another."""
        described = {
            "name": self.name,
            "version": self.version,
            "system": self.system,
            "answered": self.answered,
            "question": self.question,
        }
        return described if self.turns == "one" else {**described, "turns": self.turns}

    def chat_completion_messages(
        self, demonstrations: Sequence[Example], query: Example, image_urls: Sequence[str]
    ) -> list[dict[str, Any]]:
        """The messages as OpenAI's chat completions take them; a content without images is a plain string.

        `image_urls`: the demonstrations' in their order, then the query's.
        """
        urls = iter(image_urls)
        sent: list[dict[str, Any]] = []
        for message in self.messages(demonstrations, query):
            parts: list[dict[str, Any]] = message["content"]
            content: Any = [
                {"type": "image_url", "image_url": {"url": next(urls)}} if part["type"] == "image" else part for part in parts
            ]
            if all(part["type"] == "text" for part in parts):
                content = "".join(part["text"] for part in parts)
            sent.append({"role": message["role"], "content": content})
        return sent


def _shown(text: str) -> list[dict[str, Any]]:
    return [{"type": "image"}, _text(text)]


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


SHORT_ANSWER = PromptTemplate(
    name="short-answer",
    version=1,
    system="Answer the last question in one or a few words, as the examples do.",
    answered="Question: {question} Short answer: {answer}\n",
    question="Question: {question} Short answer:",
)
CHAT = PromptTemplate(
    name="chat",
    version=1,
    system="Answer each question about its image in one or a few words.",
    answered="{answer}",
    question="{question}",
    turns="per-shot",
)

TEMPLATES = {template.name: template for template in (SHORT_ANSWER, CHAT)}


def template(name: str) -> PromptTemplate:
    """The template of that name, or InvalidConfig listing those that exist."""
    if name not in TEMPLATES:
        raise InvalidConfig(field="prompt template", reason=f"{name!r} is unknown; there are: {', '.join(TEMPLATES)}")
    return TEMPLATES[name]
