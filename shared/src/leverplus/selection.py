"""Wire format of the selector, shared by the service and its clients. Answers are plain dictionaries of these shapes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

PolicyName = Literal["v3", "random", "similar_image", "similar_text", "similar_joint", "best_fixed", "zero_shot"]

MAX_QUERIES = 1_000
"""In one POST /select."""
MAX_PROMPTS = 100
"""In one POST /messages."""


class Choosing(TypedDict, total=False):
    """How to choose, and by what; the service's documentation says what each means and what holds where one is left out."""

    shots: int
    policy: PolicyName
    beam: int
    exclude: list[int]
    prefilter: str
    dataset: str
    checkpoint: str
    alias: str


class AskedQuery(TypedDict, total=False):
    """Exactly one of query_id, question_id, embedding, and question with image (base64 or a data URL)."""

    query_id: int
    question_id: str
    embedding: list[float]
    image: str
    question: str


class ChosenItem(TypedDict):
    """A demonstration. `step_logprob`: log-probability of this step, null for policies without one."""

    item_id: int
    question: str
    answer: str | None
    image_url: Annotated[str | None, Field(description="Path at this service; null in a dataset without images")]
    step_logprob: float | None


class PoolDescription(TypedDict):
    size: int
    policy: Annotated[dict[str, Any], Field(description="The checkpoint's pool policy")]
    sha256: Annotated[str, Field(description="Of the canonical JSON of the pool's item ids in order")]
    excluded: Annotated[
        list[int],
        Field(description="What was taken out of the query's pool: items that were to be excluded, or that show its own image"),
    ]


class UsedPrefilter(TypedDict):
    """The index that handed on the `pool`; what was measured when it was made, over `queries` of `split` with `shots` each."""

    name: str
    handed_on: Annotated[int, Field(description="Candidates that it hands on, where its lists hold so many")]
    recall: Annotated[float, Field(description="Share of the exact pointers whose items were all handed on")]
    agreement: Annotated[float, Field(description="Share of queries for which the exact pointer was chosen")]
    accuracy: Annotated[
        dict[str, Any] | None, Field(description="VQA accuracy of both choices and their difference; null if it was not scored")
    ]
    queries: int
    split: str
    shots: int


class Selection(TypedDict):
    """Demonstrations in prompt order: the last one stands next to the query. `query_id` is null for an unseen one."""

    query_id: int | None
    pointer: list[int]
    icds: list[ChosenItem]
    logprob: Annotated[float | None, Field(description="Log-probability of the pointer, null for policies without one")]
    policy: str
    checkpoint: str
    pool: PoolDescription
    prefilter: Annotated[UsedPrefilter | None, Field(description="Null where every candidate of the pool was ranked")]
    fingerprint: Annotated[dict[str, str], Field(description="sha256 of the dataset and pool contracts that were served")]


class Selections(TypedDict):
    results: list[Selection]


class PromptName(TypedDict):
    name: str
    version: int


class Prompt(TypedDict):
    """What the VLM is to be asked. `messages` are the body of a chat completion; `arguments` how answers were generated when the
    checkpoint's training data were scored, of which `max_new_tokens` is the completion's `max_tokens`."""

    selection: Selection
    messages: list[dict[str, Any]]
    prompt: PromptName
    arguments: dict[str, Any]


class PromptList(TypedDict):
    results: list[Prompt]
