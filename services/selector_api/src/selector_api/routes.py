"""HTTP only: what is asked is settled in answers, what is served in serving."""

from __future__ import annotations

import mimetypes
import os
from typing import Annotated

import orjson
from fastapi import APIRouter, Body, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse

from leverplus.deployments import DEFAULT_ALIAS
from leverplus.errors import InvalidInput
from leverplus.selection import Selection, Selections
from leverplus.tracing import NO_SPAN, Span, span
from leverplus.web import described_parameters, query_parameters
from selector_api.answers import Way, resolve_query, select_each, settle_way
from selector_api.batches import Batches
from selector_api.known_answers import KnownAnswer, KnownAnswers
from selector_api.large_bodies import LargeBodyRoute
from selector_api.library import Library
from selector_api.schemas import Choosing, SelectParameters, SelectRequest
from selector_api.serving import Served
from selector_api.unseen import encode_unseen

router = APIRouter(route_class=LargeBodyRoute)

_IMAGE_MAX_AGE_S = 3600


@router.get(
    "/select",
    tags=["select"],
    responses={200: {"model": Selection}},
    response_class=Response,
    openapi_extra=described_parameters(SelectParameters),
)
async def select_one(request: Request) -> Response:
    """Demonstrations for a query of the dataset; only `query_id` (or `question_id`) is required."""
    answers: KnownAnswers = request.app.state.known
    with span("select") as traced:
        known = found = answers.find(request)
        if known is None:
            parameters = query_parameters(request, SelectParameters, lists=("exclude",))
            served = await find_served(request, parameters)
            way = await find_way(request, served, parameters)
            query = resolve_query(served, parameters.query_id, parameters.question_id)
            batches: Batches = request.app.state.batches
            body = orjson.dumps(await batches.select(served, way, query))
            alias = None if parameters.checkpoint else parameters.alias or DEFAULT_ALIAS
            known = answers.keep(request, KnownAnswer(served, alias, way, body))
        if traced is not NO_SPAN:
            _describe(traced, known.served, known.way, queries=1, known=found is not None)
    request.app.state.selections.labels(known.way.policy).inc()
    return Response(known.body, media_type="application/json")


@router.post("/select", tags=["select"], responses={200: {"model": Selections}}, response_class=Response)
async def select_many(request: Request, body: Annotated[SelectRequest, Body()]) -> Response:
    """Demonstrations for up to 1,000 queries, all or none of them, in the order they were asked.

    A query that is given by image and question, or by its embedding, is no item of the dataset: its pool is drawn with a seed
    made of the policy's seed, the image file's bytes and the question (or the embedding's bytes: float32, little-endian), or by
    similarity to it. Image and question are encoded here, by the dataset's encoder; where the image file is one of the
    dataset's, items that show it are left out.
    """
    served = await find_served(request, body)
    way = await find_way(request, served, body)
    unseen = await encode_unseen(request.app.state.encoding, served, body.queries)

    def answer() -> bytes:
        with span("select") as traced:
            if traced is not NO_SPAN:
                _describe(traced, served, way, queries=len(body.queries), known=False)
            return orjson.dumps({"results": [selection for _, selection in select_each(served, body.queries, unseen, way)]})

    # A thousand choices take a moment; other requests and the probes go on meanwhile.
    content = await run_in_threadpool(answer)
    request.app.state.selections.labels(way.policy).inc(len(body.queries))
    return Response(content, media_type="application/json")


@router.get(
    "/items/{dataset}/{item_id}/image",
    tags=["items"],
    responses={200: {"content": {"image/*": {}}, "description": "The image"}, 304: {"description": "Unchanged"}},
    response_class=Response,
)
async def image(request: Request, dataset: str, item_id: int) -> Response:
    """An item's image, as it lies in the dataset."""
    library: Library = request.app.state.library
    opened = library.dataset(dataset) or await run_in_threadpool(library.load_dataset, dataset)
    path = opened.image_path(item_id)
    status = os.stat(path)  # noqa: PTH116
    etag = f'"{status.st_mtime_ns:x}-{status.st_size:x}"'
    headers = {
        "Cache-Control": f"private, max-age={_IMAGE_MAX_AGE_S}",
        "ETag": etag,
        "X-Content-Type-Options": "nosniff",
    }
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return FileResponse(path, media_type=kind, headers=headers, stat_result=status)


def _describe(traced: Span, served: Served, way: Way, *, queries: int, known: bool) -> None:
    """`known`: answered before, and not chosen anew."""
    size = served.info.pool_policy.get("k")
    traced.set(select__queries=queries, select__shots=way.shots, select__policy=way.policy, select__pool_size=size)
    traced.set(select__beam=way.beam, select__known=known, select__checkpoint=served.info.checkpoint_id)


async def find_served(request: Request, asked: Choosing) -> Served:
    """The checkpoint that is asked for; loading happens off the event loop."""
    library: Library = request.app.state.library
    if asked.checkpoint is not None:
        if asked.alias is not None:
            raise InvalidInput(f"checkpoint {asked.checkpoint!r} and alias {asked.alias!r} are both given; leave one out")
        return library.checkpoint(asked.checkpoint) or await run_in_threadpool(library.load_checkpoint, asked.checkpoint)
    alias = asked.alias or DEFAULT_ALIAS
    return library.current(alias) or await run_in_threadpool(library.load_alias, alias)


async def find_way(request: Request, served: Served, asked: Choosing) -> Way:
    """How to choose, with the prefilter that is asked for; it is loaded off the event loop."""
    prefilter = None
    if asked.prefilter is not None and asked.policy == "v3":
        library: Library = request.app.state.library
        prefilter = library.prefilter(served, asked.prefilter) or await run_in_threadpool(
            library.load_prefilter, served, asked.prefilter
        )
    return settle_way(served, asked, prefilter)
