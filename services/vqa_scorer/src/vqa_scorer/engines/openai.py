"""The VLM behind an OpenAI-compatible server that takes images: vLLM, SGLang.

Nothing here can see the model's weights, so its name and revision are what the user declares. The only engine that needs
httpx; it is imported when it is chosen.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from leverplus.errors import GenerationFailed, InvalidConfig, InvalidInput, LeverPlusError, Unavailable, shorten
from leverplus.prompts import SHORT_ANSWER, PromptTemplate
from leverplus.retrying import RetryPolicy
from vqa_scorer.engines import ScoringPrompt
from vqa_scorer.engines.data_urls import data_url
from vqa_scorer.engines.openai_server import BadAnswer, OpenAIServer

logger = logging.getLogger(__name__)

T = TypeVar("T")

_WHOLE_ANSWERS = ("stop", "length")
_GREEDY = {"temperature": 0, "repetition_penalty": 1.0}
"""vLLM and SGLang take what is not named from the model's generation_config.json, and that may hold a repetition penalty."""
_OTHER_TEXTS = ("reasoning_content", "reasoning", "refusal", "tool_calls", "function_call")
"""Where a message may hold what was written, when its content is null."""
_BYTES_A_TOKEN, _MORE_BYTES = 64, 1024
"""How long max_new_tokens tokens may be: most have a few bytes, the longest, runs of one sign, some hundred."""
_CLOSE_LIMIT_S = 5.0
_BATCHES_OF_REQUESTS = 4
"""How many times the requests under way a batch has prompts, so that one slow answer holds up few."""


class OpenAIEngine:
    """Greedy answers of `model` at `url`, `concurrency` requests at a time.

    `revision` is declared by the user: another one is due when the server gets other weights under the same name, for
    scores are stored under it. InvalidConfig for a URL, key, model, revision or number of beams that cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str,
        revision: str,
        api_key: str | None = None,
        template: PromptTemplate = SHORT_ANSWER,
        max_new_tokens: int = 5,
        num_beams: int = 1,
        concurrency: int = 16,
        retry: RetryPolicy | None = None,
    ) -> None:
        if num_beams != 1:
            raise InvalidConfig(
                field="LEVERPLUS_NUM_BEAMS",
                reason=f"{num_beams} beams were asked for, and an OpenAI-compatible server is asked greedily; set it to 1",
            )
        for field, value in (("LEVERPLUS_OPENAI_MODEL", model), ("LEVERPLUS_OPENAI_REVISION", revision)):
            if not value.strip():
                raise InvalidConfig(field=field, reason="is empty; scores are stored under it, so it must be declared")
        self._server = OpenAIServer(url, api_key=api_key, concurrency=concurrency, retry=retry or RetryPolicy())
        self._model = model
        self._revision = revision
        self._template = template
        self._max_new_tokens = max_new_tokens
        self._concurrency = concurrency
        self.batch_size = concurrency * _BATCHES_OF_REQUESTS
        self._runner = asyncio.Runner()
        self._busy = threading.Lock()
        self._closing = threading.Event()
        self._closed = False
        self._running: asyncio.Task[Any] | None = None

    def load(self) -> None:
        """Waits, as long as the retry policy says, for a server that lists the model.

        Unavailable where none answers, InvalidConfig where it has no such model or refuses the key.
        """
        self._run(self._require_model())

    def generate(self, prompts: Sequence[ScoringPrompt]) -> list[str | LeverPlusError]:
        """Raw texts in the order of `prompts`; in the place of one that failed for good its error.

        Unavailable where the server stayed away, GenerationFailed where it answered something that is no whole text, InvalidInput
        for an image that cannot be read. Raises Unavailable when the engine is closed.
        """
        return self._run(self._answers(prompts))

    @property
    def has_probabilities(self) -> bool:
        """Chat completions weigh only what the model itself writes, not an answer that is given."""
        return False

    def answer_probabilities(self, prompts: Sequence[ScoringPrompt], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        raise InvalidInput("an OpenAI-compatible server gives no probability of an answer; score with a model directory for that")

    def generation_fingerprint(self) -> dict[str, Any]:
        return {
            "vlm": {"server": "openai", "model": self._model, "revision": self._revision},
            "prompt": self._template.fingerprint(),
            "arguments": {
                "max_new_tokens": self._max_new_tokens,
                "num_beams": 1,
                "length_penalty": None,
                "repetition_penalty": _GREEDY["repetition_penalty"],
            },
            "dtype": None,
        }

    def reserved_texts(self) -> frozenset[str]:
        """Marks of the Qwen family: a server doesn't tell its model's own, and reads them inside a text all the same."""
        names = ("im_start", "im_end", "endoftext", "vision_start", "vision_end", "image_pad", "video_pad")
        return frozenset(f"<|{name}|>" for name in names)

    def close(self) -> None:
        """Cancels what runs, so that the server drops it too, and closes the connections. From any thread, also again."""
        self._closing.set()
        if (running := self._running) is not None:
            running.get_loop().call_soon_threadsafe(running.cancel)
        if not self._busy.acquire(timeout=_CLOSE_LIMIT_S):
            logger.warning("requests to %s did not end within %s s of being cancelled", self._server.url, _CLOSE_LIMIT_S)
            return
        try:
            if not self._closed:
                self._closed = True
                self._runner.run(self._server.close())
                self._runner.close()
        finally:
            self._busy.release()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """`work` in the engine's own event loop, in the calling thread."""
        try:
            with self._busy:
                if self._closing.is_set():
                    raise asyncio.CancelledError
                return self._runner.run(self._cancellable(work))
        except asyncio.CancelledError:
            hint = "try again when it is back"
            raise Unavailable(what="the VLM server", reason="the scorer is stopping", hint=hint) from None
        finally:
            self._running = None
            work.close()

    async def _cancellable(self, work: Coroutine[Any, Any, T]) -> T:
        self._running = asyncio.current_task()
        if self._closing.is_set():
            raise asyncio.CancelledError
        return await work

    async def _require_model(self) -> None:
        try:
            document = await self._server.json("GET", "/models")
        except BadAnswer as exc:
            field = "LEVERPLUS_OPENAI_API_KEY" if exc.status in (401, 403) else "LEVERPLUS_OPENAI_URL"
            raise InvalidConfig(field=field, reason=str(exc)) from None
        try:
            listed = [str(entry["id"]) for entry in document["data"]]
        except (KeyError, TypeError):
            said = self._shown(document)
            raise InvalidConfig(
                field="LEVERPLUS_OPENAI_URL", reason=f"{self._server.url}/models holds no list of models: {said}"
            ) from None
        if self._model not in listed:
            shown = self._shown(", ".join(listed) or "none")
            raise InvalidConfig(
                field="LEVERPLUS_OPENAI_MODEL", reason=f"{self._server.url} does not serve {self._model!r}; it serves: {shown}"
            )

    async def _answers(self, prompts: Sequence[ScoringPrompt]) -> list[str | LeverPlusError]:
        places = asyncio.Semaphore(self._concurrency)
        now = asyncio.get_running_loop().time
        answered_s = -math.inf
        away: Unavailable | None = None

        async def answer(prompt: ScoringPrompt) -> str | LeverPlusError:
            nonlocal answered_s, away
            async with places:
                if away is not None:
                    return away
                started_s = now()
                try:
                    payload = await asyncio.to_thread(self._payload, prompt)
                    text = self._text(await self._server.json("POST", "/chat/completions", payload))
                    answered_s = now()
                    return text
                except BadAnswer as exc:
                    asked = f"{exc} (to {prompt.query.question!r} behind {len(prompt.demonstrations)} demonstrations)"
                    return GenerationFailed(prompts=1, reason=asked)
                except Unavailable as exc:
                    if answered_s < started_s:
                        # It answered nobody meanwhile: the prompts to come would wait as long, one behind the other.
                        away = exc
                    return exc
                except InvalidInput as exc:
                    return exc

        tasks = [asyncio.create_task(answer(prompt)) for prompt in prompts]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _payload(self, prompt: ScoringPrompt) -> dict[str, Any]:
        image_urls = [data_url(shot.image) for shot in (*prompt.demonstrations, prompt.query)]
        messages = self._template.chat_completion_messages(prompt.demonstrations, prompt.query, image_urls)
        return {"model": self._model, "messages": messages, **_GREEDY, "max_tokens": self._max_new_tokens}

    def _text(self, document: Any) -> str:
        """The answer's text, which may be empty; BadAnswer naming what came instead."""
        try:
            choice = document["choices"][0]
            message, reason = choice["message"], choice["finish_reason"]
            text = message["content"]
        except (KeyError, IndexError, TypeError):
            raise BadAnswer(f"no answer in {self._shown(document)}") from None
        if reason not in _WHOLE_ANSWERS:
            raise BadAnswer(
                f"finish_reason is {self._shown(repr(reason))}; a whole answer ends with {' or '.join(_WHOLE_ANSWERS)}"
            )
        if text is None and reason == "stop" and not any(message.get(other) for other in _OTHER_TEXTS):
            # SGLang's way of saying that the model wrote nothing.
            return ""
        if not isinstance(text, str):
            raise BadAnswer(f"the answer's content is no text: {self._shown(choice)}")
        try:
            size = len(text.encode())
        except UnicodeEncodeError as exc:
            raise BadAnswer(f"the text of {self._server.url} is no Unicode: {exc.reason} in {self._shown(repr(text))}") from None
        if size > (most := self._max_new_tokens * _BYTES_A_TOKEN + _MORE_BYTES):
            long = f"{size} bytes, and {self._max_new_tokens} tokens have at most {most}"
            raise BadAnswer(f"the text of {self._server.url} has {long}: {self._shown(text)}")
        return text

    def _shown(self, value: Any) -> str:
        try:
            return shorten(self._server.without_key(str(value)))
        except RecursionError:
            return f"what {self._server.url} wrote, nested too deep to be shown"
