"""Settings of the trainer's API and of its worker; main.py and worker.py read them from the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import ConfigDict, Field, SecretStr, model_validator

from leverplus.data_root import DataRoot
from leverplus.web import AccessSettings, ObservationSettings, require_common_database

LONGEST_DAYS = 36_500.0
"""Of an age that something is to have; the calendar's time before today is not much longer than 2,000 years."""


class WorkerSettings(ObservationSettings):
    """What both processes need: the data, the database, the broker, the scorer."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    data: Path = Field(Path(".leverplus"), validation_alias="LEVERPLUS_DATA")
    shared: str | None = Field(
        None,
        pattern=r"^\w+://\S+$",
        validation_alias="LEVERPLUS_SHARED",
        description="the store that hosts share files through: s3://bucket/prefix",
    )
    database_url: str | None = Field(None, validation_alias="DATABASE_URL")
    redis_url: str = Field(validation_alias="REDIS_URL", min_length=1)
    scorer_url: str = Field(
        "http://127.0.0.1:8001",
        pattern=r"[^\s,]",
        validation_alias="LEVERPLUS_SCORER_URL",
        description="several, with commas between them, share the requests",
    )
    scorer_key: SecretStr | None = Field(
        None, validation_alias="LEVERPLUS_SCORER_KEY", description="key of role write, where the scorer asks for one"
    )
    threads: int = Field(1, ge=1, le=256, validation_alias="LEVERPLUS_THREADS", description="torch threads of one job")

    mlflow_tracking_uri: str | None = Field(
        None, min_length=1, validation_alias="MLFLOW_TRACKING_URI", description="where training's metrics also go"
    )

    pulse_file: Path | None = Field(
        None, validation_alias="LEVERPLUS_WORKER_PULSE", description="a worker touches it while the broker hears it"
    )

    @model_validator(mode="after")
    def _one_database(self) -> Self:
        require_common_database(self.shared, self.database_url)
        return self

    @property
    def data_root(self) -> DataRoot:
        return DataRoot.at(self.data, self.shared)

    @property
    def scorer_urls(self) -> tuple[str, ...]:
        return tuple(url.strip() for url in self.scorer_url.split(",") if url.strip())

    @property
    def store_url(self) -> str:
        """The database: SQLite in the data root unless DATABASE_URL says otherwise."""
        return self.database_url or self.data_root.sqlite_url


class TrainerSettings(WorkerSettings, AccessSettings):
    port: int = Field(8002, ge=0, le=65535, validation_alias="LEVERPLUS_TRAINER_PORT")
    max_upload_mib: int = Field(512, ge=1, validation_alias="LEVERPLUS_MAX_UPLOAD_MIB", description="largest POST /rl-data")
    reconcile_every_s: float = Field(2.0, gt=0, validation_alias="LEVERPLUS_RECONCILE_EVERY_S")
    retention_days: float | None = Field(
        None,
        gt=0,
        le=LONGEST_DAYS,
        validation_alias="LEVERPLUS_RETENTION_DAYS",
        description="training states of jobs that ended, and checkpoints never promoted, go after so many days; unset: never",
    )
