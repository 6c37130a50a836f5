"""What a deployment of the scorer can set; each field names its environment variable."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from leverplus.data_root import DataRoot


class ScorerSettings(BaseModel):
    """`database_url` is the SQLite file of the data root where it is not given."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    data: Path = Field(Path(".leverplus"), validation_alias="LEVERPLUS_DATA")
    database_url: str | None = Field(None, validation_alias="DATABASE_URL")
    host: str = Field("127.0.0.1", validation_alias="LEVERPLUS_HOST")
    port: int = Field(8001, ge=0, le=65535, validation_alias="LEVERPLUS_SCORER_PORT")
    vlm: Path = Field(validation_alias="LEVERPLUS_VLM")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", validation_alias="LEVERPLUS_DEVICE")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", validation_alias="LEVERPLUS_DTYPE")
    threads: int = Field(1, ge=1, validation_alias="LEVERPLUS_THREADS")
    prompt: str = Field("short-answer", validation_alias="LEVERPLUS_PROMPT")
    max_new_tokens: int = Field(5, ge=1, le=512, validation_alias="LEVERPLUS_MAX_NEW_TOKENS")
    num_beams: int = Field(1, ge=1, le=32, validation_alias="LEVERPLUS_NUM_BEAMS")
    length_penalty: float = Field(0.0, validation_alias="LEVERPLUS_LENGTH_PENALTY")
    batch_size: int = Field(32, ge=1, validation_alias="LEVERPLUS_BATCH_SIZE")
    queue_size: int = Field(4096, ge=1, validation_alias="LEVERPLUS_QUEUE_SIZE")
    deadline_s: float = Field(300.0, gt=0, validation_alias="LEVERPLUS_DEADLINE_S")

    @property
    def data_root(self) -> DataRoot:
        return DataRoot(self.data)

    @property
    def store_url(self) -> str:
        return self.database_url or self.data_root.sqlite_url
