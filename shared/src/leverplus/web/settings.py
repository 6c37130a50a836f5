"""Settings from the environment: a frozen pydantic model whose fields name their variable as validation alias."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

Settings = TypeVar("Settings", bound=BaseModel)

_ADDRESSES = ("URL", "URI", "ENDPOINT")
"""In the name of a variable: an address may hold a password."""


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
    try:
        return model.model_validate(_values(model, environ))
    except ValidationError:
        for fault in setting_faults(model, environ):
            print(f"error: {fault}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None


def setting_faults(model: type[BaseModel], environ: Mapping[str, str]) -> list[str]:
    """What is wrong with the settings that `environ` describes: variable, reason and, unless it is a secret, the value."""
    values = _values(model, environ)
    faults: list[str] = []
    try:
        model.model_validate(values)
    except ValidationError as exc:
        for fault in exc.errors():
            variable = ".".join(str(part) for part in fault["loc"]) or "settings"
            is_secret = variable.endswith("_KEY") or any(word in variable for word in _ADDRESSES)
            given = f" (it is {values[variable]!r})" if variable in values and not is_secret else ""
            faults.append(f"{variable}: {fault['msg']}{given}")
    return faults


def _values(model: type[BaseModel], environ: Mapping[str, str]) -> dict[str, str]:
    names = {str(field.validation_alias or name) for name, field in model.model_fields.items()}
    return {name: environ[name] for name in names if environ.get(name)}
