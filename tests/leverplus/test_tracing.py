"""Spans of a request as a collector gets them, and nothing where there is none."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from fastapi.testclient import TestClient
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from leverplus import tracing
from leverplus.client import ScorerClient
from leverplus.origin import Origin, origin, working_for
from leverplus.web import create_service

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture
def spans() -> Generator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.record("test", SimpleSpanProcessor(exporter))
    try:
        yield exporter
    finally:
        tracing.stop_tracing()


def test_spans_hang_together_by_the_origin_alone(spans: InMemorySpanExporter):
    with working_for(Origin("r", "job-1", TRACEPARENT)):
        with tracing.span("outer", "consumer", a__b=1, unknown=None) as outer:
            seen = origin.get()
            with pytest.raises(ValueError, match="why"), tracing.span("inner"):
                raise ValueError("why")
            outer.set(c="d")
        assert origin.get() == Origin("r", "job-1", TRACEPARENT)
    inner, outer_span = spans.get_finished_spans()
    assert outer_span.attributes == {"a.b": 1, "c": "d", "request.id": "r", "job.id": "job-1"}
    assert f"{outer_span.context.trace_id:032x}" == TRACE
    assert f"{outer_span.parent.span_id:016x}" == "b7ad6b7169203331"
    assert seen.traceparent == f"00-{TRACE}-{outer_span.context.span_id:016x}-01"
    assert inner.parent.span_id == outer_span.context.span_id
    assert (inner.status.is_ok, inner.status.description) == (False, "ValueError: why")
    assert outer_span.status.is_ok
    assert outer_span.resource.attributes["service.name"] == "test"


def test_what_the_client_does_not_sample_is_not_sent(spans: InMemorySpanExporter):
    with working_for(Origin("r", None, TRACEPARENT[:-2] + "00")), tracing.span("outer"):
        assert origin.get().trace_id == TRACE
    assert spans.get_finished_spans() == ()


def test_a_request_is_a_span_with_its_route(spans: InMemorySpanExporter):
    app = create_service("test", ready=lambda: None)

    @app.get("/things/{name}")
    async def thing(name: str) -> str | None:
        if name == "broken":
            raise ValueError(name)
        return origin.get().traceparent

    client = TestClient(app)
    within = client.get("/things/one", headers={"traceparent": TRACEPARENT, "X-Request-ID": "r"}).json()
    client.get("/things/broken")
    client.get("/nowhere")
    for path in ("/health/live", "/health/ready", "/metrics"):
        client.get(path)
    one, broken, nowhere = spans.get_finished_spans()
    assert (one.name, broken.name, nowhere.name) == ("GET /things/{name}", "GET /things/{name}", "GET none")
    assert one.attributes == {
        "http.request.method": "GET", "http.route": "/things/{name}", "http.response.status_code": 200, "request.id": "r",
    }  # fmt: skip
    assert within == f"00-{TRACE}-{one.context.span_id:016x}-01"
    assert broken.attributes["http.response.status_code"] == 500
    assert broken.context.trace_id != one.context.trace_id


def test_a_call_passes_its_span_on(spans: InMemorySpanExporter):
    asked: list[httpx.Headers] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers)
        return httpx.Response(200, json={})

    with ScorerClient("http://scorer", transport=httpx.MockTransport(answer)) as client, tracing.span("job"):
        client.stats()
    call, job = spans.get_finished_spans()
    assert (call.name, call.kind.name) == ("GET vqa_scorer", "CLIENT")
    assert asked[0]["traceparent"][:-3] == f"00-{job.context.trace_id:032x}-{call.context.span_id:016x}"


NOT_IMPORTED = """
import asyncio, sys
from leverplus import tracing
from leverplus.web import ObservationSettings, create_service, observe, read_settings
observe("test", read_settings(ObservationSettings, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}))
scope = {"type": "http", "method": "GET", "path": "/health/live", "headers": [], "query_string": b""}
sent = []

async def receive():
    return {"type": "http.request", "body": b"", "more_body": False}

async def send(message):
    sent.append(message)

asyncio.run(create_service("test", ready=lambda: None)(scope, receive, send))
assert sent[0]["status"] == 200
with tracing.span("nothing", a=1) as traced:
    traced.set(b=2)
    traced.rename("still nothing")
# FastAPI imports the API where it is installed.
sys.exit(str([name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))] or ""))
"""

NOT_INSTALLED = """
import sys
sys.modules["opentelemetry.exporter"] = None
from leverplus.web import ObservationSettings, observe
observe("test", ObservationSettings(otlp_endpoint="http://127.0.0.1:4318"))
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_without_a_collector_nothing_is_imported():
    assert run(NOT_IMPORTED).stderr.strip() == ""


def test_without_the_sdk_one_line_says_what_to_install():
    ended = run(NOT_INSTALLED)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: tracing needs opentelemetry, which is not installed here")
    assert "leverplus[otel]" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


class Collector(ThreadingHTTPServer):
    """OTLP over HTTP: names and attributes of all spans that were sent, by service."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.requests: list[ExportTraceServiceRequest] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Receiver(BaseHTTPRequestHandler):
    server: Collector  # type: ignore[assignment]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        assert self.path == "/v1/traces"
        self.server.requests.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        return


SENDING = """
import sys, time
from leverplus import tracing
from leverplus.web import ObservationSettings, observe
observe("sender", ObservationSettings(otlp_endpoint=sys.argv[1], log="json"))
for number in range(int(sys.argv[2])):
    with tracing.span("one", number=number):
        pass
    time.sleep(float(sys.argv[3]))
"""


def test_what_waits_is_sent_when_a_process_ends():
    with Collector() as collector:
        ended = run(SENDING, collector.url, "3", "0")
        collector.shutdown()
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    (sent,) = collector.requests
    (resource,) = sent.resource_spans
    assert "sender" in {attribute.value.string_value for attribute in resource.resource.attributes}
    assert [span.attributes[0].value.int_value for span in resource.scope_spans[0].spans] == [0, 1, 2]


def test_a_collector_that_is_away_holds_nobody_up_and_is_warned_about_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "64")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16")
    with Collector() as gone:
        gone.shutdown()
        url = gone.url
    started = time.monotonic()
    ended = run(SENDING, url.replace("http://", "http://user:secret@"), "1500", "0.008")
    assert ended.returncode == 0
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    assert [(line["level"], line["logger"]) for line in lines] == [("WARNING", "leverplus.tracing")]
    assert "takes no spans: they are dropped until it does" in lines[0]["message"]
    assert "secret" not in ended.stderr
    assert time.monotonic() - started < 40
