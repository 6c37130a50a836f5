"""What is asked over HTTP; leverplus.selection has what is answered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from leverplus.deployments import DEFAULT_ALIAS
from leverplus.ids import MAX_SHOTS
from leverplus.selection import MAX_PROMPTS, MAX_QUERIES, PolicyName

MAX_BEAM = 64
MAX_EXCLUDED = 1_000
MAX_QUESTION = 2_000
MAX_QUERY_BYTES = 16 * 2**20
"""Of one query's JSON in a large body: an image in base64, and more than an embedding takes."""
MAX_CHOOSING_BYTES = 256 * 1024
"""Of the JSON of each thing that a large body says beside its queries: the ids to exclude take a tenth of it."""

Shots = Annotated[
    int | None,
    Field(ge=0, le=MAX_SHOTS, description="Number of demonstrations; the most the checkpoint was trained for if absent"),
]
Beam = Annotated[
    int, Field(ge=1, le=MAX_BEAM, description="Width of the beam search; 1 is greedy, and all that policies other than v3 know")
]


_EXCLUDED = "Ids of items that are not to be chosen; they are taken out of the pool"

Excluded = Annotated[tuple[Annotated[int, Field(ge=0, strict=True)], ...], Field(max_length=MAX_EXCLUDED, description=_EXCLUDED)]


def _split_at_commas(value: Any) -> Any:
    """In a URL a list is written with commas, by repeating the parameter, or both."""
    if not isinstance(value, list | tuple):
        return value
    return [part for each in cast("Iterable[str]", value) for part in each.split(",")]


ExcludedInUrl = Annotated[
    tuple[Annotated[int, Field(ge=0)], ...],
    Field(max_length=MAX_EXCLUDED, description=f"{_EXCLUDED}. Separated by commas"),
    BeforeValidator(_split_at_commas),
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
    prefilter: Annotated[
        str | None,
        Field(
            description="Name of an index of the checkpoint: only what it hands on is ranked. Absent: every candidate of the pool"
        ),
    ] = None
    dataset: Annotated[str | None, Field(description="Refused if the checkpoint's dataset is another one")] = None
    checkpoint: Annotated[str | None, Field(description="A checkpoint's id, instead of an alias")] = None
    alias: Annotated[str | None, Field(description=f"A deployment's alias, {DEFAULT_ALIAS!r} if neither is given")] = None


class SelectParameters(Choosing):
    exclude: ExcludedInUrl = ()
    query_id: Annotated[int | None, Field(description="The query's item id")] = None
    question_id: Annotated[str | None, Field(description="The dataset's own question id, instead of query_id")] = None


class QueryReference(BaseModel):
    """Exactly one of query_id, question_id, embedding, and question with its image."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    query_id: Annotated[int | None, Field(strict=True)] = None
    question_id: str | None = None
    embedding: Annotated[
        list[Annotated[float, Field(strict=True)]] | None,
        Field(description="The vector [d] of a query outside the dataset, as the dataset's encoder makes it"),
    ] = None
    image: Annotated[
        str | None,
        Field(
            description="The image file of a query outside the dataset, in base64 or as a data URL: at most 10 MiB, 64 M pixels"
        ),
    ] = None
    question: Annotated[
        str | None, Field(max_length=MAX_QUESTION, description="Its question; alone where the dataset has no images")
    ] = None


class SelectRequest(Choosing):
    queries: Annotated[list[QueryReference], Field(min_length=1, max_length=MAX_QUERIES)]


class MessagesRequest(Choosing):
    queries: Annotated[list[QueryReference], Field(min_length=1, max_length=MAX_PROMPTS)]
