"""GET /select under load, beside a hello-world on the same server and three serving frameworks with the same weights.

    python benchmarks/selector_http.py [--seconds 5] [--pools 64 9009] [--peers hello litserve bentoml ray]

Needs wrk (https://github.com/wg/wrk; a package of most systems), which opens 1, 16 and 64 connections from one thread. Each
server runs alone, as it is shipped (middleware, no keys), one worker, the others' own defaults; peers are installed into virtual
environments of their own below `--environments`, torch and this project's packages are lent to them. What peers do is less: see
selector_peers. "Uncached": ids that were not asked for before, in turn over 40,000 test queries, more than any cache keeps.
"Known": 256 ids, again and again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import site
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provenance import RESULTS, ROOT, commit, machine
from rich.console import Console
from rich.table import Table
from selector_world import SHOTS, World, build_world

from leverplus.launcher.config import free_ports

CONNECTIONS = (1, 16, 64)
CANDIDATES, LARGE, QUERIES, KNOWN = 9_009, 443_757, 40_000, 256
PROGRAMS = {"hello": "hello.py", "litserve": "lit.py", "bentoml": "bento.py", "ray": "ray_serve.py"}
PACKAGES = {"litserve": "litserve==0.2.19", "bentoml": "bentoml==1.4.40", "ray": "ray[serve]==2.60.0"}
PEERS = Path(__file__).parent / "selector_peers"
_START_LIMIT_S = 180


@dataclass(frozen=True)
class Target:
    """How a query id is asked for: `path` for GET, or the path and body of a POST, with %d for the id."""

    name: str
    path: str
    body: str | None = None

    def request(self, port: int, query_id: int) -> urllib.request.Request:
        url = f"http://127.0.0.1:{port}{self.path.replace('%d', str(query_id))}"
        if self.body is None:
            return urllib.request.Request(url)
        return urllib.request.Request(url, (self.body % query_id).encode(), {"Content-Type": "application/json"})

    def script(self, first: int, asked: int, count: int) -> str:
        """wrk's Lua: `count` ids from `first` on in turn, `asked` of which were asked for before."""
        made = f'wrk.format("GET", string.format("{self.path}", id))'
        if self.body is not None:
            made = (
                f'wrk.format("POST", "{self.path}", {{["Content-Type"]="application/json"}}, string.format([[{self.body}]], id))'
            )
        if "%d" not in self.path + (self.body or ""):
            made = f'wrk.format("GET", "{self.path}")'
        return f"local n = {asked}\nrequest = function()\n  local id = {first} + n % {count}\n  n = n + 1\n  return {made}\nend\n"


OURS = Target("ours", "/select?query_id=%d")
HELLO = Target("hello", "/")
POSTED = '{"query_id": %d}'
TARGETS = {
    "hello": HELLO,
    "litserve": Target("litserve", "/predict", POSTED),
    "bentoml": Target("bentoml", "/select", '{"query_ids": [%d]}'),
    "ray": Target("ray", "/select?query_id=%d"),
}
FORMS = ("numpy", "torch")
"""What peers answer by: selector_peers/chooser.py."""


@contextmanager
def serving(command: list[str], environment: dict[str, str], ready: urllib.request.Request, log: Path) -> Generator[float]:
    """Starts a server in a group of its own; seconds until it answered `ready` with success."""
    started = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=output, stderr=output, start_new_session=True
        )
    try:
        while not _answers(ready):
            if process.poll() is not None or time.perf_counter() - started > _START_LIMIT_S:
                raise SystemExit(f"{' '.join(command)} did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.02)
        yield time.perf_counter() - started
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        # What it started may have outlived it, or be all that is left of the group.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(request: urllib.request.Request) -> bool:
    try:
        with urllib.request.urlopen(request, timeout=5):
            return True
    except OSError:
        return False


def load(target: Target, port: int, connections: int, seconds: float, first: int, asked: int, count: int) -> dict[str, Any]:
    """One run of wrk: requests a second, latencies in milliseconds, and how many answers were no success."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(target.script(first, asked, count))
        script.flush()
        # wrk counts in whole seconds.
        command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency", "--timeout", "30s"]
        ended = subprocess.run(
            [*command, "-s", script.name, f"http://127.0.0.1:{port}"], capture_output=True, text=True, check=True
        )
    said = ended.stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    percent = {name: _milliseconds(said, name) for name in ("50%", "99%")}
    requests = re.search(r"(\d+) requests in", said)
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", said)
    assert rate is not None, said
    assert requests is not None, said
    return {
        "connections": connections,
        "requests": int(requests[1]),
        "requests_per_s": round(float(rate[1]), 1),
        "p50_ms": percent["50%"],
        "p99_ms": percent["99%"],
        "failed": int(failed[1]) if failed else 0,
        "broken": sum(map(int, broken.groups())) if broken else 0,
    }


def _milliseconds(said: str, name: str) -> float:
    found = re.search(rf"^\s+{name}\s+([\d.]+)(us|ms|s)\s*$", said, re.MULTILINE)
    assert found is not None, said
    return round(float(found[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[found[2]], 3)


def peer_python(name: str, environments: Path) -> Path:
    """The interpreter of a peer's own environment, made and filled if it is not there."""
    folder = environments / name
    python = folder / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", PACKAGES[name]], check=True)
        # What it has itself comes first; torch and leverplus are ours.
        place = next(folder.glob("lib/python*/site-packages"))
        (place / "lent.pth").write_text("\n".join([*site.getsitepackages(), str(ROOT / "shared" / "src")]) + "\n")
    return python


def measure(world: World, servers: list[str], arguments: argparse.Namespace, logs: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    # The largest pool is answered some eight times a second: 64 connections need that long for a first answer each.
    large = world.pool >= LARGE
    seconds, known = (max(arguments.seconds, 20), 8) if large else (arguments.seconds, KNOWN)

    def under_load(what: str, target: Target, port: int, count: int) -> None:
        asked = load(target, port, 4, seconds / 4, world.candidates, 0, count)["requests"]
        for connections in CONNECTIONS:
            # Each goes on where the one before ended: what that one asked for may be known.
            found = load(target, port, connections, seconds, world.candidates, asked, count)
            # A peer that sheds load is counted with what it refused: its rate would flatter it, not us.
            if found["failed"] and what.startswith("ours"):
                raise SystemExit(f"{what}: {found['failed']} of {found['requests']} requests failed")
            asked += found["requests"]
            rows.append({"what": what, "pool": world.pool, **found})
            Console().print(rows[-1])

    for server in servers:
        (port,) = free_ports(1, "127.0.0.1")
        if server == "ours":
            command = [sys.executable, "-m", "selector_api"]
            environment = {"LEVERPLUS_DATA": str(world.root.path), "LEVERPLUS_SELECTOR_PORT": str(port)}
            with serving(command, environment, OURS.request(port, world.candidates), logs / "ours.log") as ready_s:
                rows.append({"what": "ours", "pool": world.pool, "ready_s": round(ready_s, 2)})
                under_load("ours, uncached", OURS, port, world.queries)
                under_load("ours, known", OURS, port, min(known, world.queries))
            continue
        for form in FORMS if server != "hello" else ("",):
            target = TARGETS[server]
            python = sys.executable if server == "hello" else str(peer_python(server, arguments.environments))
            command = [python, str(PEERS / PROGRAMS[server]), str(world.root.path), str(port)]
            environment = {"OPENBLAS_NUM_THREADS": "1", "SELECTOR_PEER": form}
            with serving(command, environment, target.request(port, world.candidates), logs / f"{server}.log"):
                under_load(f"{server}, {form}".removesuffix(", "), target, port, world.queries)
    return rows


def report(rows: list[dict[str, Any]]) -> None:
    table = Table(title=f"GET /select, {SHOTS} shots, three layers; requests/s (p50, p99 in ms)")
    for name in ("what", "pool", *(f"{count} connection(s)" for count in CONNECTIONS)):
        table.add_column(name, justify="left" if name == "what" else "right")
    measured = [row for row in rows if "connections" in row]
    for what, pool in dict.fromkeys((row["what"], row["pool"]) for row in measured):
        mine = [row for row in measured if (row["what"], row["pool"]) == (what, pool)]
        cells = [f"{row['requests_per_s']:,.0f} ({row['p50_ms']:.2f}, {row['p99_ms']:.2f})" for row in mine]
        table.add_row(what, f"{pool:,}", *cells)
    Console(width=120).print(table)


def record(rows: list[dict[str, Any]], place: Path, seconds: float, at_start: dict[str, Any]) -> None:
    result = {
        "command": f"python benchmarks/selector_http.py --seconds {seconds:g}",
        "machine": at_start,
        "commit": commit(),
        "packages": PACKAGES,
        "rows": rows,
    }
    place.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--pools", type=int, nargs="+", default=[64, CANDIDATES, LARGE])
    parser.add_argument("--peers", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--environments", type=Path, default=Path(tempfile.gettempdir()) / "selector-peers")
    parser.add_argument("--out", type=Path, default=RESULTS / "selector_http.json")
    arguments = parser.parse_args()
    at_start = machine()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        for pool in arguments.pools:
            candidates = max(CANDIDATES, pool)
            world = build_world(
                Path(name) / str(pool), candidates=candidates, queries=QUERIES if pool < LARGE else 1_000, pool=pool
            )
            # Peers hold a copy of the pool for each query in flight: at the largest they would not end.
            peers = {64: arguments.peers, CANDIDATES: [peer for peer in arguments.peers if peer != "hello"]}.get(pool, [])
            rows += measure(world, ["ours", *peers], arguments, Path(name))
            record(rows, arguments.out, arguments.seconds, at_start)
    report(rows)


if __name__ == "__main__":
    main()
