"""How a service is seen from outside, beside its metrics."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from leverplus.logs import LogStyle, start_logs


class ObservationSettings(BaseModel):
    """What every process of ours reads."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    log: LogStyle = Field("text", validation_alias="LEVERPLUS_LOG", description="json: one object a line")
    access_log: float = Field(
        0.0, ge=0, le=1, validation_alias="LEVERPLUS_ACCESS_LOG", description="share of requests that leave a line in the log"
    )


def observe(service: str, settings: ObservationSettings) -> None:
    """Called once, before anything else is done in a process."""
    start_logs(service, settings.log)
