"""Query parameters as a pydantic model, for routes where FastAPI's own way takes longer than the answer.

`Annotated[Model, Query()]` goes through every field of the model on every request, some 200 µs; pydantic itself takes 2.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)


def query_parameters(request: Request, model: type[Model], *, lists: Collection[str] = ()) -> Model:
    """What was asked for, or the same RequestValidationError as FastAPI raises. `lists`: what may be given several times."""
    asked: bytes = request.scope["query_string"]
    if b"%" in asked or b"+" in asked or b"&" in asked:
        given: dict[str, Any] = dict(request.query_params)
        for name in lists:
            if name in given:
                given[name] = request.query_params.getlist(name)
    else:
        name, equals, value = asked.decode("latin-1").partition("=")
        given = {name: value} if equals and value else dict(request.query_params)
    try:
        return model.model_validate(given)
    except ValidationError as exc:
        faults = [{**fault, "loc": ("query", *fault["loc"])} for fault in exc.errors(include_url=False)]
        raise RequestValidationError(faults) from exc


def described_parameters(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads `model`."""
    schema = model.model_json_schema()
    required = schema.get("required", [])
    return {
        "parameters": [
            {
                "name": name,
                "in": "query",
                "required": name in required,
                "schema": described,
                **({"description": described["description"]} if "description" in described else {}),
            }
            for name, described in schema["properties"].items()
        ]
    }
