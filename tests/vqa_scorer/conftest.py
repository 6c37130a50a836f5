from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from PIL import Image

from leverplus.client import ScorerClient
from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset, DatasetInfo, Item, write_dataset
from leverplus.errors import Unavailable
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


@pytest.fixture
def serving() -> Callable[[FastAPI], AbstractContextManager[ScorerClient]]:
    """Serves an application on a socket of its own, and gives a client once it is ready."""

    @contextmanager
    def serve(app: FastAPI) -> Generator[ScorerClient]:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            with ScorerClient(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=30) as client:
                _wait_until_ready(client)
                yield client
        finally:
            server.should_exit = True
            thread.join(30)
            listener.close()

    return serve


def _wait_until_ready(client: ScorerClient) -> None:
    end = time.monotonic() + 30
    while True:
        try:
            return client.ready()
        except Unavailable:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


@pytest.fixture(scope="session")
def random_vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with a Qwen2.5-VL of random weights that writes different texts for different prompts."""
    import torch
    from tokenizers import AddedToken
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    folder = tmp_path_factory.mktemp("vlm")
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    tokenizer = Qwen2Tokenizer(vocab={symbol: n for n, symbol in enumerate(sorted(ByteLevel.alphabet()))}, merges=[])
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    tokenizer.chat_template = (
        "{% for turn in messages %}<|im_start|>{{ turn['role'] }}\n{% for part in turn['content'] %}"
        "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.4,
    }
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
    image, start, end = (tokenizer.convert_tokens_to_ids(tokens[n]) for n in (5, 3, 4))
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision | {"fullatt_block_indexes": [1], "initializer_range": 0.4},
        image_token_id=image,
        video_token_id=image,
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16}).save_pretrained(folder)
    return folder
