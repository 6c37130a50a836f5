"""Log lines of a service, each with the request and the job that it is about, for people or for programs."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any, Literal

import orjson
from typing_extensions import override

from leverplus.errors import shorten
from leverplus.origin import origin

LogStyle = Literal["text", "json"]

_LONGEST_MESSAGE = 8_000


def start_logs(service: str, style: LogStyle) -> None:
    """From now on every log line and warning of this process goes to stderr in `style`, whichever library it comes from."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines(service) if style == "json" else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    # A line for each call that we make, with the whole URL in it.
    logging.getLogger("httpx").setLevel(logging.WARNING)


class JsonLines(logging.Formatter):
    """One JSON object a line. `extra={"fields": {…}}` of a logging call puts values beside its message."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    @override
    def format(self, record: logging.LogRecord) -> str:
        now = origin.get()
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname,
            "service": self._service,
            "logger": record.name,
            "message": shorten(record.getMessage(), _LONGEST_MESSAGE),
        }
        ids = {"request_id": now.request_id, "job_id": now.job_id, "trace_id": now.trace_id}
        line |= {name: value for name, value in ids.items() if value is not None}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        try:
            return orjson.dumps(line, default=str).decode()
        except TypeError:  # text that UTF-8 has no bytes for
            return json.dumps(line, default=str)


class TextLines(logging.Formatter):
    """Time, level, logger, the ids that are known, message."""

    @override
    def formatMessage(self, record: logging.LogRecord) -> str:
        now = origin.get()
        ids = " ".join(each for each in (now.request_id, now.job_id) if each is not None)
        fields = "".join(f" {name}={value}" for name, value in getattr(record, "fields", {}).items())
        return f"{_time(record)} {record.levelname} {record.name} [{ids or '-'}] {record.message}{fields}"


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
