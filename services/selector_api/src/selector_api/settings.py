"""What the selector is told by its environment."""

from __future__ import annotations

from pathlib import Path

from pydantic import ConfigDict, Field

from leverplus.data_root import DataRoot
from leverplus.web import AccessSettings


class SelectorSettings(AccessSettings):
    """Read once in main.py; `threads` is taken up before numpy is imported."""

    model_config = ConfigDict(frozen=True, populate_by_name=True, extra="forbid")

    data: Path = Field(Path(".leverplus"), validation_alias="LEVERPLUS_DATA")
    shared: str | None = Field(
        None,
        pattern=r"^\w+://\S+$",
        validation_alias="LEVERPLUS_SHARED",
        description="the store whose deployments are followed: s3://bucket/prefix",
    )
    port: int = Field(8003, ge=0, le=65535, validation_alias="LEVERPLUS_SELECTOR_PORT")
    threads: int = Field(1, ge=1, le=256, validation_alias="LEVERPLUS_THREADS")

    @property
    def data_root(self) -> DataRoot:
        """The host's own folder; what is to be in it is brought by `selector_api.following`, never by a request."""
        return DataRoot(self.data.resolve())
