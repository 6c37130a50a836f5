from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from PIL import Image

from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset, DatasetInfo, Item, write_dataset
from leverplus.ids import ItemId
from vqa_scorer.settings import ScorerSettings

ANSWERS = ["red", "green", "blue", "red", "no", "yes"]
TEN, TWO = 10, 2


@pytest.fixture
def data(tmp_path: Path) -> DataRoot:
    """Dataset `toy`: items 0 to 5 have 10, 10, 10, 2, 0, 10 answers; 6 has no image, 7 a broken one, 8 is unanswered."""
    root = DataRoot(tmp_path / "data")
    folder = root.dataset("toy")
    (folder / "images").mkdir(parents=True)
    for number, colour in enumerate(["red", "green", "blue", "brown", "black", "white"]):
        Image.new("RGB", (64, 64), colour).save(folder / "images" / f"{number}.png")
    (folder / "images" / "7.png").write_bytes(b"no image")
    counts = [TEN, TEN, TEN, TWO, 0, TEN]
    items = [
        Item(ItemId(n), "train", f"images/{n}.png", str(n), f"q{n}", f"what is {n}?", ANSWERS[n], (ANSWERS[n],) * counts[n])
        for n in range(6)
    ]
    items.append(Item(ItemId(6), "train", None, "6", "q6", "what is 6?", "red", ("red",) * TEN))
    items.append(Item(ItemId(7), "train", "images/7.png", "7", "q7", "what is 7?", "red", ("red",) * TEN))
    items.append(Item(ItemId(8), "test", "images/0.png", "0", "q8", "what is 8?", None))
    write_dataset(folder, DatasetInfo("toy", "1", "CC0", "human"), items)
    return root


@pytest.fixture
def dataset(data: DataRoot) -> Dataset:
    return Dataset.open(data.dataset("toy"))


@pytest.fixture
def settings(data: DataRoot) -> ScorerSettings:
    return ScorerSettings(data=data.path, vlm=data.path / "no-vlm", batch_size=4, queue_size=8, deadline_s=30)


Running = Callable[[FastAPI], AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
def running() -> Running:
    """Runs an application with its lifespan, and gives a client once it is ready."""

    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncGenerator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://scorer") as client:
            async with asyncio.timeout(30):
                while (await client.get("/health/ready")).status_code != 200:
                    await asyncio.sleep(0.01)
            yield client

    return run
