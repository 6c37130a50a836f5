"""What a list leaves out because it cannot be read."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field


class Broken(BaseModel):
    """Something that lies in the data root and cannot be read."""

    name: str
    reason: str


BrokenList = Annotated[list[Broken], Field(description="what lies there too, but cannot be read")]
