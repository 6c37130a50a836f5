"""The chosen prompt over HTTP."""

from __future__ import annotations

from typing import Annotated

import orjson
from fastapi import APIRouter, Body, Request, Response
from fastapi.concurrency import run_in_threadpool

from leverplus.selection import Prompt, PromptList
from leverplus.web import described_parameters, query_parameters
from selector_api.answers import naming, resolve_query, select_each
from selector_api.batches import Batches
from selector_api.large_bodies import LargeBodyRoute
from selector_api.messages import Prompts
from selector_api.routes import find_served, find_way
from selector_api.schemas import MessagesRequest, SelectParameters
from selector_api.unseen import encode_unseen

router = APIRouter(route_class=LargeBodyRoute)


@router.get(
    "/messages",
    tags=["messages"],
    responses={200: {"model": Prompt}},
    response_class=Response,
    openapi_extra=described_parameters(SelectParameters),
)
async def messages_for_one(request: Request) -> Response:
    """The chosen demonstrations and the query as OpenAI chat messages, images as data URLs, in the prompt that was scored."""
    parameters = query_parameters(request, SelectParameters, lists=("exclude",))
    served = await find_served(request, parameters)
    way = await find_way(request, served, parameters)
    query = resolve_query(served, parameters.query_id, parameters.question_id)
    prompts = Prompts(served)
    batches: Batches = request.app.state.batches
    selection = await batches.select(served, way, query)
    content = await run_in_threadpool(lambda: orjson.dumps(prompts.prompt(query, selection)))
    request.app.state.selections.labels(way.policy).inc()
    return Response(content, media_type="application/json")


@router.post("/messages", tags=["messages"], responses={200: {"model": PromptList}}, response_class=Response)
async def messages_for_many(request: Request, body: Annotated[MessagesRequest, Body()]) -> Response:
    """Messages for up to 100 queries, all or none of them, in the order they were asked; their images together up to 64 MiB.

    Queries are given as for POST /select; one that is given by its embedding alone has no image to show, and is refused.
    """
    served = await find_served(request, body)
    way = await find_way(request, served, body)
    prompts = Prompts(served)
    unseen = await encode_unseen(request.app.state.encoding, served, body.queries)

    def answer() -> bytes:
        results: list[Prompt] = []
        for number, (query, selection) in enumerate(select_each(served, body.queries, unseen, way)):
            with naming(number):
                results.append(prompts.prompt(query, selection))
        return orjson.dumps({"results": results})

    content = await run_in_threadpool(answer)
    request.app.state.selections.labels(way.policy).inc(len(body.queries))
    return Response(content, media_type="application/json")
