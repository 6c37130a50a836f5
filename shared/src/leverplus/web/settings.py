"""Settings from the environment: a frozen pydantic model whose fields name their variable as validation alias."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

Settings = TypeVar("Settings", bound=BaseModel)


def require_common_database(shared: str | None, database_url: str | None) -> None:
    """PydanticCustomError where hosts share files but each would have a database of its own."""
    if shared is not None and database_url is None:
        raise PydanticCustomError(
            "own_database",
            "LEVERPLUS_SHARED is for several hosts, and they need one database, too: set DATABASE_URL to a PostgreSQL; SQLite is "
            "a file of one host",
        )


def read_settings(model: type[Settings], environ: Mapping[str, str]) -> Settings:
    """The settings that `environ` describes; an empty variable counts as unset. Exits with one line a fault if it cannot be."""
    names = {str(field.validation_alias or name) for name, field in model.model_fields.items()}
    values = {name: environ[name] for name in names if environ.get(name)}
    try:
        return model.model_validate(values)
    except ValidationError as exc:
        for fault in exc.errors():
            variable = ".".join(str(part) for part in fault["loc"]) or "settings"
            is_secret = "URL" in variable or variable.endswith("_KEY")
            given = f" (it is {values[variable]!r})" if variable in values and not is_secret else ""
            print(f"error: {variable}: {fault['msg']}{given}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
