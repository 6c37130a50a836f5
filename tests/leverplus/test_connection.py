"""Clients that fall silent before they have asked, or hang up before they are answered: a real server, real connections."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path

import pytest

LIMIT_S = 30.0
IDLE_S = 3
"""No client here is silent for that long unless it means to be."""

SERVER = """
import asyncio, socket, sys
from fastapi import Request
from leverplus.logs import start_logs
from leverplus.web import create_service, serve

start_logs("test", "text")
app = create_service("test", ready=lambda: None)
opened = asyncio.Event()

@app.post("/held")
async def held() -> None:
    await opened.wait()

@app.post("/open")
async def open_held() -> None:
    global opened
    opened.set()
    opened = asyncio.Event()

@app.post("/slow")
async def slow(request: Request, s: float) -> int:
    await asyncio.sleep(s)
    return len(await request.body())

@app.post("/broken")
async def broken() -> None:
    await asyncio.sleep(0.2)
    raise ValueError("a fault of ours")

serve(app, host="127.0.0.1", port=int(sys.argv[1]), idle_s=int(sys.argv[2]))
"""


class Server:
    """In a process of its own. `log`: what it wrote since the test began."""

    def __init__(self, port: int, log: Path) -> None:
        self.port = port
        self._log = log
        self._begun = 0

    def begin(self) -> None:
        self._begun = len(self._log.read_text())

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT_S)

    def log(self) -> str:
        return self._log.read_text()[self._begun :]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen([sys.executable, "-c", SERVER, str(port), str(IDLE_S)], stderr=stream)
    found = Server(port, log)
    try:
        until(lambda: "Uvicorn running" in found.log())
        yield found
    finally:
        process.kill()
        process.wait(LIMIT_S)


@pytest.fixture
def server(running: Server) -> Server:
    running.begin()
    return running


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def post(path: str, body: bytes = b"") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: here\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def read_answer(client: socket.socket) -> bytes:
    """One whole answer: headers, and as much as they announce."""
    received = b""
    while b"\r\n\r\n" not in received:
        part = client.recv(65_536)
        assert part, received
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
    while len(body) < length:
        body += client.recv(65_536)
    return head


def closed(client: socket.socket) -> bool:
    """Whether the server ends the connection without another byte; socket.timeout if it holds it."""
    try:
        return client.recv(65_536) == b""
    except ConnectionError:
        return True


def ask(server: Server, path: str) -> None:
    with server.connect() as client:
        client.sendall(post(path))
        assert read_answer(client).startswith(b"HTTP/1.1 200")


HALF = b"GET /health/live HTTP/1.1\r\nHost: he"


def test_a_connection_that_never_asks_is_closed(server: Server) -> None:
    clients = {sent: server.connect() for sent in (b"", b"\r\n", b"G", b"GET / HTTP/1.1", HALF)}
    for sent, client in clients.items():
        client.sendall(sent)
    for sent, client in clients.items():
        with client:
            assert closed(client), sent


def test_half_a_request_after_a_whole_one_is_closed(server: Server) -> None:
    with server.connect() as client:
        client.sendall(HALF + b"re\r\n\r\n")
        assert read_answer(client).startswith(b"HTTP/1.1 200")
        client.sendall(HALF)
        assert closed(client)


def test_headers_that_come_drop_by_drop_have_no_longer(server: Server) -> None:
    with server.connect() as client:
        client.sendall(HALF)
        client.settimeout(IDLE_S / 5)
        drops = 0
        while True:
            try:
                assert closed(client)
                break
            except TimeoutError:
                drops += 1
                assert drops < LIMIT_S / (IDLE_S / 5)
                client.sendall(b"x")


def test_headers_without_an_end_are_not_held(server: Server) -> None:
    with server.connect() as client:
        client.sendall(HALF)
        sent = 0
        with suppress(ConnectionError):
            while sent < 100_000_000:
                sent += client.send(b"x" * 10_000)
        assert sent < 100_000_000


def test_headers_in_two_parts_and_slow_answers_are_no_silence(server: Server) -> None:
    with server.connect() as client:
        for _ in range(2):
            client.sendall(HALF)
            time.sleep(0.1)
            client.sendall(b"re\r\n\r\n")
            assert read_answer(client).startswith(b"HTTP/1.1 200")
        # An answer may take longer than a silence, and so may one that half a request waits behind.
        client.sendall(post(f"/slow?s={2 * IDLE_S}", b"xyz") + HALF)
        assert read_answer(client).startswith(b"HTTP/1.1 200")
        client.sendall(b"re\r\n\r\n")
        assert read_answer(client).startswith(b"HTTP/1.1 200")


def hang_up(client: socket.socket) -> None:
    """At once and without a farewell: the server's next write fails."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_who_hangs_up_leaves_one_line(server: Server, count: int) -> None:
    """Of the requests sent ahead, the first is answered, one is being answered, the others wait."""
    client = server.connect()
    client.sendall(post("/slow?s=0") + post("/held") * count)
    read_answer(client)
    hang_up(client)
    until(lambda: "the connection ended" in server.log())
    for path in ("/open", "/slow?s=0.1"):
        ask(server, path)
    lines = [line for line in server.log().splitlines() if "uvicorn" not in line]
    assert len(lines) == 1, server.log()
    assert " INFO leverplus.web " in lines[0]
    assert "POST /held: the connection ended before the answer did" in lines[0]
    assert "Traceback" not in server.log()


def test_a_fault_of_ours_is_told_though_the_client_hung_up(server: Server) -> None:
    client = server.connect()
    client.sendall(post("/broken") * 3)
    time.sleep(0.1)
    hang_up(client)
    until(lambda: "ValueError: a fault of ours" in server.log())
    assert "POST /broken failed" in server.log()
