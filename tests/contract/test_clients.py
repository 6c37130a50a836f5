"""The typed clients against the real applications on a real socket: what one writes, the other reads."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI
from PIL import Image

from leverplus import errors
from leverplus.client import ScorerClient, TrainerClient
from leverplus.data_root import DataRoot
from leverplus.dataset import DatasetInfo, Item, write_dataset
from leverplus.ids import ItemId
from leverplus.scoring import ScoreQuery, ScoreRequest
from leverplus.selector_client import SelectorClient
from pointer_trainer.app import create_app as create_trainer
from pointer_trainer.settings import TrainerSettings
from selector_api.app import create_app as create_selector
from selector_api.settings import SelectorSettings
from vqa_scorer.app import create_app as create_scorer
from vqa_scorer.engines.echo import EchoEngine
from vqa_scorer.settings import ScorerSettings

LIMIT_S = 30.0


@contextmanager
def listening(app: FastAPI) -> Generator[str]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = int(taken.getsockname()[1])
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        end = time.monotonic() + LIMIT_S
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < end
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(LIMIT_S)


@pytest.fixture
def data(tmp_path: Path) -> DataRoot:
    root = DataRoot(tmp_path / "data")
    folder = root.dataset("toy")
    (folder / "images").mkdir(parents=True)
    items: list[Item] = []
    for number, colour in enumerate(["red", "green", "blue"]):
        Image.new("RGB", (16, 16), colour).save(folder / "images" / f"{number}.png")
        item = Item(ItemId(number), "train", f"images/{number}.png", str(number), f"q{number}", "?", colour, (colour,) * 10)
        items.append(item)
    write_dataset(folder, DatasetInfo("toy", "1", "CC0", "human"), items)
    return root


def request(*pointers: list[int]) -> ScoreRequest:
    return ScoreRequest(dataset="toy", queries=[ScoreQuery(query_id=0, pointers=list(pointers))])


def test_scorer(data: DataRoot):
    app = create_scorer(ScorerSettings(data=data.path, vlm=data.path), engine=EchoEngine(zero_shot="red"))
    with listening(app) as url, ScorerClient(url) as client:
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            try:
                client.ready()
                break
            except errors.Unavailable:
                time.sleep(0.02)
        answer = client.score(request([], [1, 2]))
        zero_shot, two_shot = answer.results[0].candidates
        assert (zero_shot.vqa_correct, zero_shot.vqa_acc_score, zero_shot.vqa_eval_mode) == (1, 1.0, "file")
        assert (two_shot.pointer, two_shot.vqa_pred_answer, two_shot.vqa_acc_score) == ([1, 2], "blue", 0.0)
        assert set(answer.fingerprint) == {"dataset", "generation", "metric"}
        assert client.score(request([1, 2])).stats.cached == 1
        with pytest.raises(errors.InvalidPointer, match="the query is its own demonstration"):
            client.score(request([0]))
        with pytest.raises(errors.NotFound, match="nowhere"):
            client.score(ScoreRequest(dataset="nowhere", queries=[ScoreQuery(query_id=0, pointers=[[]])]))
        assert client.stats()["totals"]["generated"] == 2


def test_trainer_without_a_broker_is_unready_and_takes_no_job(data: DataRoot):
    app = create_trainer(TrainerSettings(data=data.path, redis_url="redis://127.0.0.1:1/0"))
    with listening(app) as url, TrainerClient(url) as client:
        with pytest.raises(errors.Unavailable, match="broker"):
            client.ready()
        with pytest.raises(errors.Unavailable, match="broker"):
            client.embed("toy")
        with pytest.raises(errors.NotFound, match="nowhere"):
            client.embed("nowhere")
        with pytest.raises(errors.NotFound, match="job-0"):
            client.job("job-0")
        assert client.jobs() == []
    assert not list((data.path / "runs").glob("*"))


def test_selector_without_a_deployment_says_how_to_get_one(data: DataRoot):
    with listening(create_selector(SelectorSettings(data=data.path))) as url, SelectorClient(url) as client:
        with pytest.raises(errors.Unavailable, match="promote"):
            client.ready()
        with pytest.raises(errors.NotFound, match="production"):
            client.select(query_id=0)
        with pytest.raises(errors.InvalidInput, match="query_id"):
            client.select(query_id="x")


def test_a_service_that_is_away_is_named():
    with ScorerClient("http://127.0.0.1:1") as client, pytest.raises(errors.Unavailable, match="vqa_scorer is away"):
        client.stats()
