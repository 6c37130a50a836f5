"""The prompt that was scored, with the demonstrations that were chosen, as OpenAI chat messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leverplus.data_urls import data_url
from leverplus.errors import InvalidCheckpoint, InvalidInput
from leverplus.prompts import Example, PromptTemplate, Unsolved
from leverplus.selection import Prompt, Selection
from selector_api.serving import Query, Served

MOST_IMAGE_BYTES = 64 * 2**20
"""Of the data URLs of one answer."""


class Prompts:
    """Prompts of one request. InvalidCheckpoint where the checkpoint does not say which prompt its data were scored with."""

    def __init__(self, served: Served) -> None:
        generation = served.info.fingerprint.generation or {}
        stated: Mapping[str, Any] | None = generation.get("prompt")
        if stated is None:
            reason = "does not say which prompt its training data were scored with, so none is made; ask /select instead"
            raise InvalidCheckpoint(path=served.info.checkpoint_id, reason=reason)
        self._served = served
        self._template = PromptTemplate.from_fingerprint(stated)
        self._arguments: Mapping[str, Any] = generation.get("arguments") or {}
        self._bytes = 0

    def prompt(self, query: Query, selection: Selection) -> Prompt:
        """InvalidInput for a query without image and question, an image that cannot be read, or once the images of this request
        are too many."""
        dataset = self._served.dataset
        demonstrations = [dataset.items[item_id] for item_id in selection["pointer"]]
        asked, own_url = self._asked(query)
        image_urls = [*(data_url(dataset.image_path(item.item_id)) for item in demonstrations), own_url]
        self._bytes += sum(map(len, image_urls))
        if self._bytes > MOST_IMAGE_BYTES:
            raise InvalidInput(f"the images come to more than {MOST_IMAGE_BYTES} bytes as data URLs; ask for fewer at a time")
        return {
            "selection": selection,
            "messages": self._template.chat_completion_messages(demonstrations, asked, image_urls),
            "prompt": {"name": self._template.name, "version": self._template.version},
            "arguments": dict(self._arguments),
        }

    def _asked(self, query: Query) -> tuple[Example, str]:
        if query.item_id is not None:
            return self._served.dataset.items[query.item_id], data_url(self._served.dataset.image_path(query.item_id))
        if query.image is None or query.question is None:
            raise InvalidInput("an embedding shows neither image nor question; send these, or ask /select")
        return Unsolved(query.question), data_url(query.image)
