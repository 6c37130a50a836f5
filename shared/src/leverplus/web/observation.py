"""How a service is seen from outside, beside its metrics."""

from __future__ import annotations

import sys

from pydantic import BaseModel, ConfigDict, Field

from leverplus.errors import NotInstalled
from leverplus.logs import LogStyle, start_logs
from leverplus.tracing import start_tracing


class ObservationSettings(BaseModel):
    """What every process of ours reads."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    log: LogStyle = Field("text", validation_alias="LEVERPLUS_LOG", description="json: one object a line")
    access_log: float = Field(
        0.0, ge=0, le=1, validation_alias="LEVERPLUS_ACCESS_LOG", description="share of requests that leave a line in the log"
    )
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^\s/]+",
        validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT",
        description="collector that is sent traces, OTLP over HTTP; unset: none are made",
    )


def observe(service: str, settings: ObservationSettings) -> None:
    """Called once, before anything else in a process; exits with one line where tracing is asked for and not installed."""
    start_logs(service, settings.log)
    if settings.otlp_endpoint is not None:
        try:
            start_tracing(service, settings.otlp_endpoint)
        except NotInstalled as exc:
            sys.exit(f"error: {exc}")
