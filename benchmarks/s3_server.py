"""moto's S3 server, which keeps everything in memory, counting what each host moves.

    python benchmarks/s3_server.py PORT

A host is known by its access key: give each one of its own. GET /counts answers {access key: {requests, sent, received}}, bytes
as the host sees them.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

import orjson
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, run_simple

_CREDENTIAL = re.compile(r"Credential=([^/]+)/")


class Counting:
    """A WSGI application in front of another."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application = application
        self._lock = threading.Lock()
        self._counts: dict[str, dict[str, int]] = {}

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/counts":
            start_response("200 OK", [("Content-Type", "application/json")])
            with self._lock:
                return [orjson.dumps(self._counts)]
        found = _CREDENTIAL.search(environ.get("HTTP_AUTHORIZATION", ""))
        body = list(self._application(environ, start_response))
        with self._lock:
            counts = self._counts.setdefault(found[1] if found else "unknown", {"requests": 0, "sent": 0, "received": 0})
            counts["requests"] += 1
            counts["sent"] += int(environ.get("CONTENT_LENGTH") or 0)
            counts["received"] += sum(map(len, body))
        return body


class _Silent(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Thousands of lines are of no use."""


if __name__ == "__main__":
    application = Counting(DomainDispatcherApplication(create_backend_app))
    run_simple("127.0.0.1", int(sys.argv[1]), application, threaded=True, request_handler=_Silent)
