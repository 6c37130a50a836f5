"""A trainer whose processes can be killed one by one: its API, workers, scorers, a Valkey that keeps nothing; and its data."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import redis
from PIL import Image
from sqlalchemy import create_engine, delete, select, text, update
from sqlalchemy.exc import DBAPIError

from leverplus.checkpoints import read_info
from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset, DatasetInfo, Item, write_dataset
from leverplus.embeddings import Block, EmbeddingManifest, Embeddings
from leverplus.fingerprint import Fingerprint
from leverplus.ids import ItemId
from leverplus.launcher import Ports
from leverplus.launcher.valkey import server_program
from leverplus.pools import PoolPolicy, Pools
from leverplus.rl_data import Candidate, QueryRecord, write
from leverplus.store import Job, JobStore, open_store
from leverplus.store.schema import jobs as job_rows
from leverplus.store.schema import scores

ECHO_SCORER = Path(__file__).with_name("echo_scorer.py")
RL_DATA = "rl-numbers"
ITEMS, WIDTH = 96, 16
LIMIT_S = 120.0

_T = TypeVar("_T")


def wait_until(condition: Callable[[], _T | None], what: str, *, limit_s: float = LIMIT_S) -> _T:
    """The first result that is true."""
    end = time.monotonic() + limit_s
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {limit_s:.0f} s")
        time.sleep(0.02)
    return found


def write_training_data(root: DataRoot) -> None:
    """Dataset `numbers`, its embeddings, and RL data `rl-numbers`: random pointers of one and two shots, half of them right."""
    folder = root.dataset("numbers")
    items = (Item(ItemId(i), "train", None, f"i{i}", f"q{i}", f"question {i}?", "yes", ("yes",) * 10) for i in range(ITEMS))
    write_dataset(folder, DatasetInfo("numbers", "1", "none", "replicated"), items)
    dataset = Dataset.open(folder)
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(ITEMS, WIDTH)).astype(np.float32)
    blocks = (Block("joint", 0, WIDTH),)
    embeddings = Embeddings(
        rows, rows, EmbeddingManifest({"name": "none"}, dataset.info.sha256, blocks, WIDTH, ITEMS, "same", "encoders")
    )
    embeddings.save(root.embeddings("numbers"))
    policy = PoolPolicy(sampler="random", k=12)
    pools = Pools(dataset, embeddings, policy)
    records: list[QueryRecord] = []
    for number in range(ITEMS):
        pool = pools.pool(number)
        drawn = {
            tuple(ItemId(int(item)) for item in draw.choice(pool, size=shots, replace=False))
            for shots in (1, 2)
            for _ in range(6)
        }
        candidates = [
            Candidate(pointer, "random", vqa_correct=pointer[0] % 2, vqa_acc_score=float(pointer[0] % 2), vqa_eval_mode="file")
            for pointer in sorted(drawn)
        ]
        records.append(QueryRecord(ItemId(number), {}, tuple(ItemId(int(item)) for item in pool), tuple(candidates)))
    fingerprint = Fingerprint(dataset=dataset.fingerprint(), pool=pools.fingerprint(), generation={"vlm": "none"})
    write(root.rl_data(RL_DATA), records, fingerprint=fingerprint, meta={"pool_policy": policy.to_json()})


def write_questions(root: DataRoot, count: int, *, seed: int = 0) -> None:
    """Dataset `questions`, to be scored: one picture, a question and one of eight answers each; and its embeddings."""
    folder = root.dataset("questions")
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (8, 8), "grey").save(folder / "images" / "grey.png")
    words = [f"word{number}" for number in range(8)]

    def item(number: int) -> Item:
        answer = words[number % len(words)]
        picture = "images/grey.png"
        return Item(ItemId(number), "train", picture, f"i{number}", f"q{number}", f"question {number}?", answer, (answer,) * 10)

    write_dataset(folder, DatasetInfo("questions", "1", "none", "replicated"), map(item, range(count)))
    rows = np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)
    sha256 = Dataset.open(folder).info.sha256
    manifest = EmbeddingManifest({"name": "none"}, sha256, (Block("joint", 0, WIDTH),), WIDTH, count, "same", "encoders")
    Embeddings(rows, rows, manifest).save(root.embeddings("questions"))


class Program:
    """A process that leads a group of its own and is started as often as it is killed."""

    def __init__(self, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        self._command = command
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "it was started"
        return self._process.pid

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log, start_new_session=True)

    def send(self, number: signal.Signals) -> None:
        """To the whole group."""
        os.killpg(self.pid, number)

    def kill(self) -> None:
        """SIGKILL to the process that was started alone; it is dead when this returns."""
        assert self._process is not None, "it was started"
        self._process.kill()
        self._process.wait(30)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.send(signal.SIGKILL)
            self._process.wait(30)


class Trainer:
    """API, Valkey, workers and scorers without a model on one database, below `folder`; leaving the `with` block ends them all.

    A scorer waits `scorer_delay_s` with every batch.
    """

    def __init__(self, folder: Path, database_url: str, *, workers: int, scorers: int = 0, scorer_delay_s: float = 0.0) -> None:
        self.root = DataRoot(folder / "data")
        write_training_data(self.root)
        self._engine = open_store(database_url)
        self.jobs = JobStore(self._engine)
        ports = Ports.free(scorers=1 + scorers)
        self.url = f"http://127.0.0.1:{ports.trainer}"
        self._redis_url = f"redis://127.0.0.1:{ports.scorer}/0"
        environment = {
            "LEVERPLUS_DATA": str(self.root.path),
            "DATABASE_URL": database_url,
            "REDIS_URL": self._redis_url,
            "LEVERPLUS_TRAINER_PORT": str(ports.trainer),
        }
        self.scorers: list[Program] = []
        for number, port in enumerate(ports.further_scorers):
            settings = {**environment, "LEVERPLUS_SCORER_PORT": str(port), "LEVERPLUS_VLM": "."}
            command = [sys.executable, str(ECHO_SCORER), "--delay-s", str(scorer_delay_s)]
            self.scorers.append(Program(command, settings, folder / f"scorer-{number}.log"))
        if scorers:
            environment["LEVERPLUS_SCORER_URL"] = ",".join(f"http://127.0.0.1:{port}" for port in ports.further_scorers)
        # Nothing on the disk: every start finds it empty.
        valkey = [str(server_program()), "--bind", "127.0.0.1", "--port", str(ports.scorer), "--save", "", "--appendonly", "no"]
        self.valkey = Program(valkey, environment, folder / "valkey.log")
        self.api = Program([sys.executable, "-m", "pointer_trainer"], environment, folder / "api.log")
        self._environment = environment
        self._folder = folder
        self.workers = [self._worker(number) for number in range(workers)]
        self._http = httpx.Client(timeout=60.0)

    def __enter__(self) -> Trainer:
        try:
            self.start_valkey()
            for program in (self.api, *self.scorers, *self.workers):
                program.start()
            self.wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for program in (*self.workers, *self.scorers, self.api, self.valkey):
            program.stop()
        self._http.close()
        self._engine.dispose()

    def _worker(self, number: int) -> Program:
        command = [sys.executable, "-m", "pointer_trainer.worker"]
        return Program(command, self._environment, self._folder / f"worker-{number}.log")

    def add_workers(self, count: int) -> list[Program]:
        """So many more, started; they end with the others unless they are stopped before."""
        added = [self._worker(len(self.workers) + number) for number in range(count)]
        for worker in added:
            worker.start()
        self.workers += added
        return added

    def start_valkey(self) -> None:
        self.valkey.start()
        with redis.Redis.from_url(self._redis_url) as client:

            def answers() -> bool:
                try:
                    return bool(client.ping())
                except redis.RedisError:
                    return False

            wait_until(answers, "valkey answers")

    def wait_until_ready(self) -> None:
        wait_until(lambda: self.ask("GET", "/health/ready"), f"the API is ready (see {self.api.log})")

    def ask(self, method: str, path: str, **arguments: Any) -> dict[str, Any] | None:
        """The answer; None where there is none or the service says that it cannot now."""
        try:
            answer = self._http.request(method, self.url + path, **arguments)
        except httpx.TransportError:
            return None
        if answer.status_code == 503:
            return None
        answer.raise_for_status()
        return answer.json() if answer.content else {"status": answer.status_code}

    def train(self, config: Mapping[str, Any], *, key: str) -> str:
        """Asks, under one Idempotency-Key, until a job is accepted; its id."""
        return self._accepted("/train", {"rl_data": [RL_DATA], "config": dict(config)}, key)

    def sweep(self, config: Mapping[str, Any], axes: Mapping[str, list[Any]], *, key: str) -> str:
        """The same for a sweep over `config`."""
        return self._accepted("/sweep", {"base": {"rl_data": [RL_DATA], "config": dict(config)}, "axes": dict(axes)}, key)

    def generate(self, *, key: str, **fields: Any) -> str:
        """The same for a generation over `questions`."""
        return self._accepted("/rl-data/generate", {"dataset": "questions", **fields}, key)

    def forget_scores(self) -> None:
        """As if nothing had been scored yet."""
        with self._engine.begin() as connection:
            connection.execute(delete(scores))

    def _accepted(self, path: str, body: Mapping[str, Any], key: str) -> str:
        def accepted() -> dict[str, Any] | None:
            return self.ask("POST", path, json=body, headers={"Idempotency-Key": key})

        return wait_until(accepted, "a job is accepted")["job_id"]

    def wait_for(self, job_id: str, status: str, *, limit_s: float = LIMIT_S) -> Job:
        """The job when it has this status; RuntimeError where it ended otherwise."""

        def reached() -> Job | None:
            job = self.jobs.get(job_id)
            if job.status != status and job.status in ("succeeded", "failed", "cancelled"):
                raise RuntimeError(f"{job_id} is {job.status}, expected {status}: {job.error}")
            return job if job.status == status else None

        return wait_until(reached, f"{job_id} is {status}", limit_s=limit_s)

    def has_trained(self, job_id: str, run: int) -> bool:
        """Whether run `run` of the job has left a state of its own, or the job is done."""
        job = self.jobs.get(job_id)
        return (self.root.run(job_id) / f"state-{run}.safetensors").exists() or job.status == "succeeded"

    def worker_of(self, job_id: str) -> tuple[Program, int]:
        """The worker that has the job's lease, and the pid of its process that does the work."""
        with self._engine.connect() as connection:
            owner = connection.execute(select(job_rows.c.lease_owner).where(job_rows.c.id == job_id)).scalar_one()
        pid = int(str(owner).rpartition(":")[2])
        return next(worker for worker in self.workers if worker.pid == os.getpgid(pid)), pid

    def age_heartbeat(self, job_id: str) -> None:
        """As if the job's worker, which is dead or stopped, had not been heard of for long."""
        with self._engine.begin() as connection:
            connection.execute(update(job_rows).where(job_rows.c.id == job_id).values(heartbeat_at=0.0, enqueued_at=0.0))

    def stop_between_transactions(self, worker: Program, job_id: str) -> int:
        """SIGSTOP; how often it was put off. Stopped between BEGIN and COMMIT a worker holds a lock for as long as it stands, on
        SQLite that of the whole database: what that does says nothing of the jobs."""
        put_off = 0
        worker.send(signal.SIGSTOP)
        while not self._can_write(job_id):
            put_off += 1
            worker.send(signal.SIGCONT)
            time.sleep(0.05)
            worker.send(signal.SIGSTOP)
        return put_off

    def _can_write(self, job_id: str) -> bool:
        # An engine of its own: the shorter time limit stays with its connection.
        engine = create_engine(self._engine.url)
        try:
            with engine.connect() as connection:
                if engine.dialect.name == "sqlite":
                    connection.exec_driver_sql("PRAGMA busy_timeout=500")
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                else:
                    connection.execute(text("SELECT id FROM jobs WHERE id = :id FOR UPDATE NOWAIT"), {"id": job_id})
        except DBAPIError:
            return False
        finally:
            engine.dispose()
        return True

    def left_by(self, job_id: str) -> tuple[str, bytes]:
        """What must be the same whatever happened: the hash of the checkpoint's tensors and metrics.jsonl to the byte."""
        checkpoint = self.root.checkpoint(f"ckpt-{job_id.removeprefix('job-')}")
        return read_info(checkpoint).model_sha256, (self.root.run(job_id) / "metrics.jsonl").read_bytes()
