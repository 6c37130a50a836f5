"""What is asked and answered over HTTP. Answers are written as plain dictionaries; their models document them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from leverplus.deployments import DEFAULT_ALIAS
from leverplus.ids import MAX_SHOTS

MAX_QUERIES = 1_000
MAX_BEAM = 64
MAX_EXCLUDED = 1_000

PolicyName = Literal["v3", "random", "similar_image", "similar_text", "similar_joint", "best_fixed", "zero_shot"]

Shots = Annotated[
    int | None,
    Field(ge=0, le=MAX_SHOTS, description="Number of demonstrations; the most the checkpoint was trained for if absent"),
]
Beam = Annotated[
    int, Field(ge=1, le=MAX_BEAM, description="Width of the beam search; 1 is greedy, and all that policies other than v3 know")
]


def _split_at_commas(value: Any) -> Any:
    """In a URL a list is written with commas, by repeating the parameter, or both."""
    if not isinstance(value, list | tuple):
        return value
    given = cast("Iterable[Any]", value)
    return [part for each in given for part in (each.split(",") if isinstance(each, str) else [each])]


Excluded = Annotated[
    tuple[Annotated[int, Field(ge=0)], ...],
    BeforeValidator(_split_at_commas),
    Field(
        max_length=MAX_EXCLUDED,
        description="Ids of items that are not to be chosen; they are taken out of the pool. In a URL separated by commas",
    ),
]


class Choosing(BaseModel):
    """How to choose, and by what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shots: Shots = None
    policy: Annotated[
        PolicyName,
        Field(description="How demonstrations are chosen, from the checkpoint's pool; v3: by its selector, whatever kind it is"),
    ] = "v3"
    beam: Beam = 1
    exclude: Excluded = ()
    dataset: Annotated[str | None, Field(description="Refused if the checkpoint's dataset is another one")] = None
    checkpoint: Annotated[str | None, Field(description="A checkpoint's id, instead of an alias")] = None
    alias: Annotated[str | None, Field(description=f"A deployment's alias, {DEFAULT_ALIAS!r} if neither is given")] = None


class SelectParameters(Choosing):
    query_id: Annotated[int | None, Field(description="The query's item id")] = None
    question_id: Annotated[str | None, Field(description="The dataset's own question id, instead of query_id")] = None


class QueryReference(BaseModel):
    """Exactly one of the three."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    query_id: int | None = None
    question_id: str | None = None
    embedding: Annotated[
        list[float] | None, Field(description="The vector [d] of a query outside the dataset, as the dataset's encoder makes it")
    ] = None


class SelectRequest(Choosing):
    queries: Annotated[list[QueryReference], Field(min_length=1, max_length=MAX_QUERIES)]


class ChosenItem(BaseModel):
    """A demonstration. `step_logprob`: log-probability of this step, null for policies without one."""

    item_id: int
    question: str
    answer: str | None
    image_url: str | None = Field(description="Path at this service; null in a dataset without images")
    step_logprob: float | None


class PoolDescription(BaseModel):
    size: int
    policy: dict[str, Any] = Field(description="The checkpoint's pool policy")
    sha256: str = Field(description="Of the canonical JSON of the pool's item ids in order")
    excluded: list[int] = Field(
        description="What was taken out of the query's pool before: items that were to be excluded, or that show its own image"
    )


class Selection(BaseModel):
    """Demonstrations in prompt order: the last one stands next to the query. `query_id` is null for an embedding."""

    query_id: int | None
    pointer: list[int]
    icds: list[ChosenItem]
    logprob: float | None = Field(description="Log-probability of the pointer, null for policies without one")
    policy: str
    checkpoint: str
    pool: PoolDescription
    fingerprint: dict[str, str] = Field(description="sha256 of the dataset and pool contracts that were served")


class Selections(BaseModel):
    results: list[Selection]
