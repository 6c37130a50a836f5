"""What the scorer sends to a VLM's server for a query and a pointer is what the selector hands out as messages."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from leverplus.checkpoints import FORMAT, CheckpointInfo, save_checkpoint
from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset, DatasetInfo, Item, write_dataset
from leverplus.embeddings import Block, EmbeddingManifest, Embeddings
from leverplus.fingerprint import Fingerprint
from leverplus.ids import ItemId
from leverplus.pools import PoolPolicy, Pools
from leverplus.prompts import TEMPLATES, Shot
from leverplus.selector.config import SelectorConfig, tensor_shapes
from selector_api.app import create_app
from selector_api.settings import SelectorSettings
from vqa_scorer.engines import ScoringPrompt
from vqa_scorer.engines.openai import OpenAIEngine

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


@contextmanager
def chat_server() -> Generator[tuple[str, list[Any]]]:
    """A server of chat completions that answers "yes", and the bodies that it was sent."""
    seen: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            body = json.dumps({"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def write_data(root: DataRoot, generation: dict[str, Any]) -> Dataset:
    """Ten items with pictures in five formats, and checkpoint `ckpt` that was scored under `generation`."""
    folder = root.dataset("toy")
    (folder / "images").mkdir(parents=True)
    items: list[Item] = []
    for n in range(10):
        kind = FORMATS[n % len(FORMATS)]
        Image.effect_noise((20, 12), 90).convert("RGB").save(folder / "images" / f"{n}.{kind.lower()}", kind)
        question = f'what is "{n}" — ünd {{warum}}?'
        items.append(Item(ItemId(n), "train", f"images/{n}.{kind.lower()}", str(n), str(n), question, f"no. {n}", ("a",)))
    write_dataset(folder, DatasetInfo("toy", "1", "CC0-1.0", "human"), items)
    dataset = Dataset.open(folder)
    vectors = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)
    manifest = EmbeddingManifest({"name": "drawn"}, dataset.info.sha256, (Block("joint", 0, 4),), 4, 10, "same", "encoders")
    embeddings = Embeddings(vectors, vectors, manifest)
    embeddings.save(root.embeddings("toy"))
    config, policy = SelectorConfig(d_model=4, hidden_dim=8), PoolPolicy("all")
    info = CheckpointInfo(
        checkpoint_id="ckpt",
        format=FORMAT,
        selector=config.to_json(),
        dataset="toy",
        pool_policy=policy.to_json(),
        shots=[1, 2, 3, 4],
        fingerprint=Fingerprint(dataset.fingerprint(), Pools(dataset, embeddings, policy).fingerprint(), generation),
        training={},
        rl_data=[],
        metrics={},
        code_version="0.1.0",
        created_at="2026-01-01T00:00:00+00:00",
    )
    generator = np.random.default_rng(1)
    tensors = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in tensor_shapes(config).items()}
    save_checkpoint(root.checkpoint("ckpt"), tensors, info)
    return dataset


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=list(TEMPLATES))
def test_the_scorers_prompt_is_the_selectors(tmp_path: Path, template: Any) -> None:
    root = DataRoot(tmp_path)
    with chat_server() as (url, seen):
        engine = OpenAIEngine(url, model="vlm", revision="1", template=template)
        try:
            dataset = write_data(root, engine.generation_fingerprint())
            with TestClient(create_app(SelectorSettings(data=tmp_path))) as client:
                for query_id in range(10):
                    shots = query_id % 5
                    response = client.get(f"/messages?query_id={query_id}&shots={shots}&checkpoint=ckpt")
                    assert response.status_code == 200, response.text
                    answer = response.json()
                    pointer = answer["selection"]["pointer"]
                    assert len(pointer) == shots
                    *demonstrations, query = (
                        Shot(dataset.image_path(item_id), dataset.items[item_id].question, dataset.items[item_id].answer)
                        for item_id in (*pointer, query_id)
                    )
                    assert engine.generate([ScoringPrompt(tuple(demonstrations), query)]) == ["yes"]
                    assert json.dumps(answer["messages"]) == json.dumps(seen[-1]["messages"])
                    assert answer["arguments"]["max_new_tokens"] == seen[-1]["max_tokens"]
        finally:
            engine.close()
