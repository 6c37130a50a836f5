from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

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


def _byte_tokenizer(marks: list[str], image: str) -> Any:
    """Bytes and `marks`, with a chat template that writes `image` for a picture."""
    from tokenizers import AddedToken
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    tokenizer = Qwen2Tokenizer(vocab={symbol: n for n, symbol in enumerate(sorted(ByteLevel.alphabet()))}, merges=[])
    own = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *marks]
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in own])
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    tokenizer.chat_template = (
        "{% for turn in messages %}<|im_start|>{{ turn['role'] }}\n{% for part in turn['content'] %}"
        "{% if part['type'] == 'image' %}" + image + "{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def _save_llava(folder: Path, text: dict[str, Any], vision: dict[str, Any]) -> None:
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, Qwen2Config
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = _byte_tokenizer(["<image>"], "<image>")
    config = LlavaConfig(
        text_config=Qwen2Config(**text, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id),
        vision_config=CLIPVisionConfig(**vision, num_attention_heads=2, num_hidden_layers=2, image_size=28, patch_size=14),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    options = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    LlavaProcessor(images, tokenizer, chat_template=tokenizer.chat_template, **options).save_pretrained(folder)


def _save_qwen2_vl(folder: Path, text: dict[str, Any], vision: dict[str, Any]) -> None:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    del vision["intermediate_size"]
    vision |= {"embed_dim": 32, "mlp_ratio": 2}
    _save_qwen(folder, Qwen2VLConfig, Qwen2VLForConditionalGeneration, text, {}, vision, patch=14)


def _save_qwen3_vl(folder: Path, text: dict[str, Any], vision: dict[str, Any]) -> None:
    """Image features go into several layers of its language model."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    vision |= {"out_hidden_size": 32, "deepstack_visual_indexes": [0]}
    text |= {"head_dim": 16}
    _save_qwen(folder, Qwen3VLConfig, Qwen3VLForConditionalGeneration, text, {"mrope_interleaved": True}, vision, patch=16)


def _save_qwen(
    folder: Path, config: Any, model: Any, text: dict[str, Any], rope: dict[str, Any], vision: dict[str, Any], *, patch: int
) -> None:
    """Its processor has a video half."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    marks = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = _byte_tokenizer(marks, "<|vision_start|><|image_pad|><|vision_end|>")
    start, end, image, video = tokenizer.convert_tokens_to_ids(marks)
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0, **rope}
    made = config(
        text_config={**text, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "rope_parameters": rope},
        vision_config={**vision, "depth": 2, "num_heads": 2},
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    model(made).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sizes = {"shortest_edge": (4 * patch) ** 2, "longest_edge": (2 * patch) ** 2 * 16}
    Qwen2VLImageProcessorPil(patch_size=patch, size=sizes).save_pretrained(folder)


def _save_gemma3(folder: Path, text: dict[str, Any], vision: dict[str, Any]) -> None:
    """A chat template writes one mark for an image and the model reads another; images see all of themselves."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Processor
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    marks = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = _byte_tokenizer([*marks.values(), "<bos>"], marks["boi_token"])
    tokenizer.bos_token = "<bos>"
    tokenizer.init_kwargs["extra_special_tokens"] = marks
    tokenizer._set_model_specific_special_tokens(special_tokens=marks)
    begin, end, image = tokenizer.convert_tokens_to_ids(list(marks.values()))
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = Gemma3Config(
        text_config={**text, **ids, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "head_dim": 16},
        vision_config={**vision, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14},
        mm_tokens_per_image=4,
        tie_word_embeddings=False,
        boi_token_index=begin,
        eoi_token_index=end,
        image_token_index=image,
    )
    model = Gemma3ForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    images = Gemma3ImageProcessorPil(size={"height": 56, "width": 56})
    Gemma3Processor(images, tokenizer, chat_template=tokenizer.chat_template, image_seq_length=4).save_pretrained(folder)


def _save_idefics3(folder: Path, text: dict[str, Any], vision: dict[str, Any]) -> None:
    """The family of SmolVLM: a picture is cut into tiles, and a batch is padded to the most of them."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor, LlamaConfig
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    tokenizer = _byte_tokenizer(["<image>", "<fake_token_around_image>", "<global-img>", *tiles], "<image>")
    config = Idefics3Config(
        text_config=LlamaConfig(
            **text, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
        ),
        vision_config={**vision, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 7},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    images = Idefics3ImageProcessorPil(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    template = tokenizer.chat_template
    Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=template).save_pretrained(folder)


STOCK_FAMILIES = {
    "llava": _save_llava,
    "qwen2_vl": _save_qwen2_vl,
    "qwen3_vl": _save_qwen3_vl,
    "idefics3": _save_idefics3,
    "gemma3": _save_gemma3,
}


@pytest.fixture(scope="session")
def stock_vlm(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Model directories of families without a decoder of ours, those of STOCK_FAMILIES, with random weights."""
    import torch

    made: dict[str, Path] = {}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "initializer_range": 0.4}
    text = {**sizes, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": None}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            torch.manual_seed(0)
            STOCK_FAMILIES[family](made[family], dict(text), dict(sizes))
        return made[family]

    return folder
