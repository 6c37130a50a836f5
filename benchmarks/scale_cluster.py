"""Hosts of benchmarks/scale_small.py: real processes, each with a data folder of its own; one database, broker and store."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson
from kill_record import Batch, ScoreName
from provenance import ROOT
from sqlalchemy import Engine, delete, select, text
from trainer_processes import Program, wait_until

from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset
from leverplus.launcher.config import free_ports
from leverplus.launcher.valkey import server_program
from leverplus.store import Job, JobStore, open_store
from leverplus.store.schema import scores

DATASET = "invented-words-demo"
PREPARED = ROOT / ".leverplus" / "scale-small"
BATCH = 64
BUCKET = "leverplus"
LIMIT_S = 300.0


def prepared() -> DataRoot:
    """Dataset and embeddings of the demo, made once."""
    root = DataRoot(PREPARED)
    leverplus = str(Path(sys.executable).with_name("leverplus"))
    if not root.dataset(DATASET).is_dir():
        arguments = ["import", "invented-words", "--size", "demo", "--name", DATASET, "--data", str(PREPARED)]
        subprocess.run([leverplus, *arguments], check=True)
    if not root.embeddings(DATASET).is_dir():
        subprocess.run([leverplus, "embed", DATASET, "--data", str(PREPARED)], check=True)
    return root


@dataclass
class Host:
    """A process and its data folder."""

    name: str
    folder: Path
    program: Program

    @property
    def data(self) -> DataRoot:
        return DataRoot(self.folder)

    def lose(self) -> None:
        """Its plug is pulled, and its disk is gone."""
        self.program.send(signal.SIGKILL)
        self.program.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass
class Connections:
    """The most connections to the database that were seen at once, ours left out."""

    engine: Engine
    most: int = 0
    ended: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        query = text(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND datname = current_database()"
        )
        with self.engine.connect() as connection:
            while not self.ended.wait(0.2):
                self.most = max(self.most, int(connection.execute(query).scalar_one()) - 2)
                connection.rollback()


class Cluster:
    """All of it below `folder`; leaving the `with` block ends every process."""

    def __init__(self, folder: Path, database_url: str, *, delay_s: float) -> None:
        self.folder = folder
        self.record = folder / "record.jsonl"
        self.engine = open_store(database_url)
        self.jobs = JobStore(self.engine)
        api, broker, store, selector, *scorer_ports = free_ports(6)
        self.api_url, self.selector_url = (f"http://127.0.0.1:{port}" for port in (api, selector))
        self.scorer_urls = [f"http://127.0.0.1:{port}" for port in scorer_ports]
        self.store_url = f"http://127.0.0.1:{store}"
        self.environment = {
            "LEVERPLUS_SHARED": f"s3://{BUCKET}/one",
            "DATABASE_URL": database_url,
            "REDIS_URL": f"redis://127.0.0.1:{broker}/0",
            "LEVERPLUS_SCORER_URL": ",".join(self.scorer_urls),
            "LEVERPLUS_TRAINER_PORT": str(api),
            "LEVERPLUS_SELECTOR_PORT": str(selector),
            "LEVERPLUS_VLM": ".",
            "AWS_ENDPOINT_URL": self.store_url,
            "AWS_SECRET_ACCESS_KEY": "none",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        valkey = [str(server_program()), "--bind", "127.0.0.1", "--port", str(broker), "--save", "", "--appendonly", "no"]
        s3 = [sys.executable, str(ROOT / "benchmarks" / "s3_server.py"), str(store)]
        self.servers = [Program(valkey, {}, folder / "valkey.log"), Program(s3, {}, folder / "s3.log")]
        echo = [sys.executable, str(ROOT / "benchmarks" / "echo_scorer.py"), "--batch-size", str(BATCH)]
        echo += ["--delay-s", str(delay_s), "--record", str(self.record)]
        self.scorers = [
            self.host(f"scorer{number}", echo, LEVERPLUS_SCORER_PORT=str(port)) for number, port in enumerate(scorer_ports, 1)
        ]
        self.api = self.host("api", [sys.executable, "-m", "pointer_trainer"])
        self.hosts = [*self.scorers, self.api]
        self.fetched_s: list[float] = []

    def host(self, name: str, command: list[str], **variables: str) -> Host:
        folder = self.folder / name
        settings = {**self.environment, "LEVERPLUS_DATA": str(folder), "AWS_ACCESS_KEY_ID": name, **variables}
        return Host(name, folder, Program(command, settings, self.folder / f"{name}.log"))

    def worker(self, name: str, *, ahead: bool = True, **variables: str) -> Host:
        """Started; with dataset and embeddings where they are fetched ahead."""
        found = self.host(name, [sys.executable, "-m", "pointer_trainer.worker"], **variables)
        self.hosts.append(found)
        if ahead:
            self.fetch_ahead(found)
        found.program.start()
        return found

    def fetch_ahead(self, host: Host) -> None:
        began = time.monotonic()
        self._leverplus("fetch", host)
        self.fetched_s.append(round(time.monotonic() - began, 1))

    def __enter__(self) -> Cluster:
        try:
            for server in self.servers:
                server.start()
            wait_until(self._store_answers, "the store answers")
            self._share_the_data()
            self.api.program.start()
            for scorer in self.scorers:
                self.fetch_ahead(scorer)
                scorer.program.start()
            for url in (self.api_url, *self.scorer_urls):
                wait_until(lambda url=url: is_ready(url), f"{url} is ready")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts:
            host.program.stop()
        for server in self.servers:
            server.stop()
        self.engine.dispose()

    def _store_answers(self) -> bool:
        try:
            return httpx.put(f"{self.store_url}/{BUCKET}").status_code == 200
        except httpx.TransportError:
            return False

    def _share_the_data(self) -> None:
        """As a user does, from the host that has the data."""
        shutil.copytree(PREPARED / "datasets", self.api.folder / "datasets")
        shutil.copytree(PREPARED / "embeddings", self.api.folder / "embeddings")
        self._leverplus("publish", self.api)

    def _leverplus(self, what: str, host: Host) -> None:
        leverplus = str(Path(sys.executable).with_name("leverplus"))
        names = [f"datasets/{DATASET}", f"embeddings/{DATASET}"]
        environment = {**os.environ, **self.environment, "AWS_ACCESS_KEY_ID": host.name, "LEVERPLUS_DATA": str(host.folder)}
        subprocess.run([leverplus, "shared", what, *names], env=environment, check=True, stdout=subprocess.DEVNULL)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = httpx.post(self.api_url + path, json=body, timeout=60)
        if answer.is_error:
            raise RuntimeError(f"{path}: {answer.status_code} {answer.text}")
        return answer.json()

    def ended(self, job_id: str) -> Job:
        def look() -> Job | None:
            job = self.jobs.get(job_id)
            if job.status in ("failed", "cancelled"):
                raise RuntimeError(f"{job_id} is {job.status}: {job.error}")
            return job if job.status == "succeeded" else None

        return wait_until(look, f"{job_id} is done", limit_s=LIMIT_S)

    def lines(self, job: Job) -> list[bytes]:
        """Of its RL data, brought to a folder that nobody else uses."""
        assert job.result is not None, "it has succeeded"
        os.environ.update({name: value for name, value in self.environment.items() if name.startswith("AWS_")})
        os.environ["AWS_ACCESS_KEY_ID"] = "onlooker"
        root = DataRoot.at(self.folder / "onlooker", self.environment["LEVERPLUS_SHARED"])
        return root.rl_data(job.result["rl_data_id"]).read_bytes().splitlines()[1:]

    def counts(self) -> dict[str, dict[str, int]]:
        return httpx.get(f"{self.store_url}/counts").json()

    def committed(self) -> dict[ScoreName, str]:
        columns = (scores.c.query_id, scores.c.pointer, scores.c.raw_text)
        with self.engine.connect() as connection:
            rows = connection.execute(select(*columns)).all()
        return {("text", query, pointer): raw for query, pointer, raw in rows}

    def forget_scores(self) -> None:
        with self.engine.begin() as connection:
            connection.execute(delete(scores))
        self.record.unlink(missing_ok=True)

    def batches(self) -> list[Batch]:
        """The engines' record, its items by number."""
        items = Dataset.open(PREPARED / "datasets" / DATASET).items
        numbers = {(item.image, item.question): item.item_id for item in items}
        assert len(numbers) == len(items), "an item is known by its image and question"
        found: list[Batch] = []
        for line in self.record.read_bytes().splitlines():
            value = orjson.loads(line)
            prompts = [
                [numbers[image.rpartition(f"/{DATASET}/")[2], question] for image, question in prompt]
                for prompt in value["prompts"]
            ]
            names = tuple(("text", int(ids[-1]), ",".join(map(str, ids[:-1]))) for ids in prompts)
            found.append(Batch(value["pid"], value["at"], names))
        return found


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def requests_of(url: str) -> int:
    """POST /score that a scorer has answered since it started."""
    total = 0.0
    for line in httpx.get(f"{url}/metrics").text.splitlines():
        if line.startswith("leverplus_http_requests_total") and 'route="/score"' in line:
            total += float(line.rpartition(" ")[2])
    return int(total)
