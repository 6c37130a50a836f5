"""What a deployment of the scorer can set; each field names its environment variable."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import ConfigDict, Field, SecretStr, model_validator
from pydantic_core import PydanticCustomError

from leverplus.data_root import DataRoot
from leverplus.web import AccessSettings, require_common_database


class ScorerSettings(AccessSettings):
    """`database_url` is the SQLite file of the data root where it is not given. `claim_expiry_s` is how long other scorers on the
    database wait for what one that was killed had begun; it is to be longer than the machines' clocks differ.

    The VLM is the model directory `vlm`, with the LoRA adapter in `lora` if one is named, or `openai_model` on the server at
    `openai_url`: one of the two, never both. Device, dtype and threads count for a directory only. `deadline_s` is a request's,
    and of a streamed one every step forward's. The caches' bounds are the engine's own where they are not given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    data: Path = Field(Path(".leverplus"), validation_alias="LEVERPLUS_DATA")
    shared: str | None = Field(
        None,
        pattern=r"^\w+://\S+$",
        validation_alias="LEVERPLUS_SHARED",
        description="the store that hosts share files through: s3://bucket/prefix",
    )
    database_url: str | None = Field(None, validation_alias="DATABASE_URL")
    port: int = Field(8001, ge=0, le=65535, validation_alias="LEVERPLUS_SCORER_PORT")
    vlm: Path | None = Field(None, validation_alias="LEVERPLUS_VLM")
    lora: Path | None = Field(None, validation_alias="LEVERPLUS_LORA")
    openai_url: str | None = Field(None, validation_alias="LEVERPLUS_OPENAI_URL")
    openai_model: str | None = Field(None, validation_alias="LEVERPLUS_OPENAI_MODEL")
    openai_revision: str | None = Field(None, validation_alias="LEVERPLUS_OPENAI_REVISION")
    openai_api_key: SecretStr | None = Field(None, validation_alias="LEVERPLUS_OPENAI_API_KEY")
    openai_concurrency: int = Field(16, ge=1, le=1024, validation_alias="LEVERPLUS_OPENAI_CONCURRENCY")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", validation_alias="LEVERPLUS_DEVICE")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", validation_alias="LEVERPLUS_DTYPE")
    threads: int = Field(1, ge=1, validation_alias="LEVERPLUS_THREADS")
    prompt: str = Field("short-answer", validation_alias="LEVERPLUS_PROMPT")
    max_new_tokens: int = Field(5, ge=1, le=512, validation_alias="LEVERPLUS_MAX_NEW_TOKENS")
    num_beams: int = Field(1, ge=1, le=32, validation_alias="LEVERPLUS_NUM_BEAMS")
    length_penalty: float = Field(0.0, validation_alias="LEVERPLUS_LENGTH_PENALTY")
    batch_size: int | None = Field(None, ge=1, validation_alias="LEVERPLUS_BATCH_SIZE")
    image_cache_mib: int | None = Field(None, ge=0, validation_alias="LEVERPLUS_IMAGE_CACHE_MIB")
    host_cache_mib: int | None = Field(None, ge=0, validation_alias="LEVERPLUS_HOST_CACHE_MIB")
    prefix_cache_mib: int | None = Field(None, ge=0, validation_alias="LEVERPLUS_PREFIX_CACHE_MIB")
    queue_size: int = Field(4096, ge=1, validation_alias="LEVERPLUS_QUEUE_SIZE")
    deadline_s: float = Field(300.0, gt=0, validation_alias="LEVERPLUS_DEADLINE_S")
    claim_expiry_s: float = Field(15.0, ge=0.5, validation_alias="LEVERPLUS_CLAIM_EXPIRY_S")

    @model_validator(mode="after")
    def _one_vlm(self) -> Self:
        if (self.vlm is None) == (self.openai_url is None):
            given = "neither is" if self.vlm is None else "both are"
            raise PydanticCustomError(
                "one_vlm",
                "set exactly one of LEVERPLUS_VLM (a model directory) and LEVERPLUS_OPENAI_URL (a server); {given} set",
                {"given": given},
            )
        if self.lora is not None and self.vlm is None:
            raise PydanticCustomError(
                "foreign_adapter",
                "LEVERPLUS_LORA adds to the model directory of LEVERPLUS_VLM; a server loads its adapters itself: unset it",
            )
        if self.openai_url is not None and (self.openai_model is None or self.openai_revision is None):
            raise PydanticCustomError(
                "undeclared_vlm",
                "LEVERPLUS_OPENAI_URL needs LEVERPLUS_OPENAI_MODEL (as the server lists it) and LEVERPLUS_OPENAI_REVISION "
                "(your name for the weights it serves): scores are stored under both",
            )
        return self

    @model_validator(mode="after")
    def _one_database(self) -> Self:
        require_common_database(self.shared, self.database_url)
        return self

    @property
    def data_root(self) -> DataRoot:
        return DataRoot.at(self.data, self.shared)

    @property
    def store_url(self) -> str:
        return self.database_url or self.data_root.sqlite_url
