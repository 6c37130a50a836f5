"""Log lines name the request and the job that they are about."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import UTC, datetime

import httpx
import pytest

from leverplus.client import ScorerClient
from leverplus.logs import JsonLines, TextLines
from leverplus.origin import NOBODY, Origin, asked_by, joined, origin, passed_on, working_for
from leverplus.selector_client import AsyncSelectorClient

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"
ALICE = Origin("request-1", "job-1", TRACEPARENT)


def record(message: str, *values: object, **given: object) -> logging.LogRecord:
    made = logging.LogRecord("leverplus.test", logging.WARNING, __file__, 1, message, values, None)
    made.created = datetime(2026, 1, 2, 3, 4, 5, 678_000, UTC).timestamp()
    made.__dict__.update(given)
    return made


def test_a_line_of_json_has_all_that_is_known():
    with working_for(ALICE):
        line = JsonLines("scorer").format(record("%d of %d", 1, 2, fields={"status": 200}))
    assert json.loads(line) == {
        "time": "2026-01-02T03:04:05.678Z", "level": "WARNING", "service": "scorer", "logger": "leverplus.test",
        "message": "1 of 2",
        "request_id": "request-1", "job_id": "job-1", "trace_id": TRACE, "status": 200,
    }  # fmt: skip
    assert {"request_id", "job_id", "trace_id"}.isdisjoint(json.loads(JsonLines("scorer").format(record("alone"))))


@pytest.mark.parametrize("message", ["a\nb", "half \ud800", "x" * 100_000, "\x00\x1b[31m"])
def test_whatever_a_message_holds_it_is_one_line(message: str):
    line = JsonLines("s").format(record("%s", message))
    assert "\n" not in line
    assert json.loads(line)["message"][:2] == message[:2]
    assert len(line) < 10_000


def test_an_exception_stands_in_its_line():
    try:
        raise ValueError("why")
    except ValueError:
        found = json.loads(JsonLines("s").format(record("failed", exc_info=sys.exc_info())))
    assert found["exception"].startswith("Traceback")
    assert found["exception"].endswith("ValueError: why")


def test_a_line_of_text():
    with working_for(ALICE):
        line = TextLines().format(record("done"))
    assert line == "2026-01-02T03:04:05.678Z WARNING leverplus.test [request-1 job-1] done"
    assert TextLines().format(record("done")).endswith(" [-] done")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"traceparent": TRACEPARENT, "x-job-id": "job-1"}, Origin("r", "job-1", TRACEPARENT)),
        ({"x-job-id": "a b"}, Origin("r")),
        ({"traceparent": TRACEPARENT.upper()}, Origin("r")),
        ({"traceparent": f"00-{'0' * 32}-b7ad6b7169203331-01"}, Origin("r")),
        ({"traceparent": f"00-{TRACE}-{'0' * 16}-01"}, Origin("r")),
        ({"traceparent": f"ff-{TRACE}-b7ad6b7169203331-01"}, Origin("r")),
        ({"traceparent": TRACEPARENT + "\n"}, Origin("r")),
    ],
)
def test_what_headers_say(headers: dict[str, str], expected: Origin):
    raw = [(name.encode(), value.encode()) for name, value in {"x-request-id": "r", **headers}.items()]
    assert asked_by(raw) == expected


def test_clients_pass_on_for_whom_they_ask():
    seen: list[httpx.Headers] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers)
        return httpx.Response(200, json={"service": "vqa_scorer", "deployments": []})

    with ScorerClient("http://scorer", transport=httpx.MockTransport(answer)) as client:
        client.name()
        with working_for(ALICE):
            client.name()
            with ThreadPoolExecutor(1) as threads:
                threads.submit(copy_context().run, client.name).result()
            client.request("GET", "/health/live", headers={"X-Request-ID": "own"})
    assert "x-request-id" not in seen[0]
    for headers in seen[1:3]:
        assert (headers["x-request-id"], headers["x-job-id"], headers["traceparent"]) == ALICE
    assert seen[3]["x-request-id"] == "own"


async def _deployments(transport: httpx.AsyncBaseTransport) -> None:
    async with AsyncSelectorClient("http://selector", transport=transport) as client:
        await client.deployments()


def test_so_does_the_asynchronous_one():
    import asyncio

    seen: list[httpx.Headers] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers)
        return httpx.Response(200, json={"deployments": []})

    with working_for(ALICE):
        asyncio.run(_deployments(httpx.MockTransport(answer)))
    assert seen[0]["x-job-id"] == "job-1"


def test_what_is_done_for_several_names_them():
    several = [Origin(f"r{number}", "job-1", TRACEPARENT if number == 2 else None) for number in range(1, 7)]
    assert joined([*several, *several]) == Origin("r1,r2,r3,r4,and 2 more", "job-1", TRACEPARENT)
    assert joined([]) == NOBODY


def test_nobody_is_left_behind():
    with working_for(ALICE):
        assert passed_on()["X-Request-ID"] == "request-1"
    assert origin.get() == NOBODY
    assert passed_on() == {}


PROGRAM = """
import logging, sys, warnings
from leverplus.logs import start_logs
logging.basicConfig()
start_logs("test", sys.argv[1])
logging.getLogger("uvicorn.error").info("of a library")
logging.getLogger("httpx").info("of every call")
warnings.warn("mind this")
"""


@pytest.mark.parametrize(
    ("style", "read"), [("json", lambda line: json.loads(line)["logger"]), ("text", lambda line: line.split()[2])]
)
def test_libraries_and_warnings_go_the_same_way(style: str, read: Callable[[str], str]):
    ended = subprocess.run([sys.executable, "-c", PROGRAM, style], capture_output=True, text=True, timeout=60, check=True)
    lines = [line for line in ended.stderr.splitlines() if not line.startswith("  ")]
    assert [read(line) for line in lines if line.strip()] == ["uvicorn.error", "py.warnings"]
