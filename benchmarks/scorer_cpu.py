"""Two-shot pointers a second through POST /score of the real scorer process, on this machine's cores.

    python benchmarks/scorer_cpu.py [--vlm assets/small-vlm] [--pointers 640]

Each setting gets a process of its own, an empty database, and one warm-up request. Beside them, in the same run: transformers'
`generate` on the same prompts at the same batch size, and the machine's own multiply-add limit (a large float32 matrix product),
against which `share_of_limit` sets the multiply-adds that the prompts' tokens need. Writes benchmarks/results/scorer_cpu.json.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from provenance import RESULTS, ROOT, commit, machine
from transformers import Qwen2_5_VLForConditionalGeneration

from leverplus.client import ScorerClient
from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset
from leverplus.dataset.easy_vqa import import_easy_vqa
from leverplus.errors import LeverPlusError
from leverplus.files import write_json
from leverplus.launcher import Ports
from leverplus.prompts import SHORT_ANSWER, Shot
from leverplus.scoring import ScoreQuery, ScoreRequest
from vqa_scorer.engines.images import read_image
from vqa_scorer.engines.processor import load_processor

POOL, PER_QUERY, BATCH = 64, 20, 32
SETTINGS = ((1, 1), (1, 3), (2, 1), (2, 3))
"""Threads and beams."""


def build_request(dataset: Dataset, pointers: int) -> ScoreRequest:
    """`pointers` two-shot pointers: 20 a query, over one pool of 64 items."""
    draw = random.Random(0)
    pool = draw.sample(dataset.split_ids("train"), POOL)
    pairs = list(permutations(pool, 2))
    queries = dataset.split_ids("test")[: pointers // PER_QUERY]
    return ScoreRequest(
        dataset=dataset.name,
        queries=[
            ScoreQuery(query_id=query, pointers=[list(pair) for pair in draw.sample(pairs, PER_QUERY)]) for query in queries
        ],
    )


def through_http(data: Path, vlm: Path, threads: int, beams: int, request: ScoreRequest, warm_up: ScoreRequest) -> float:
    """Pointers a second."""
    port = Ports.free().scorer
    with tempfile.TemporaryDirectory() as folder:
        variables = {
            "LEVERPLUS_DATA": str(data),
            "LEVERPLUS_VLM": str(vlm),
            "LEVERPLUS_SCORER_PORT": str(port),
            "LEVERPLUS_THREADS": str(threads),
            "LEVERPLUS_NUM_BEAMS": str(beams),
            "LEVERPLUS_BATCH_SIZE": str(BATCH),
            "DATABASE_URL": f"sqlite:///{folder}/store.sqlite",
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "vqa_scorer"], env={**os.environ, **variables}, stderr=subprocess.DEVNULL
        )
        try:
            with ScorerClient(f"http://127.0.0.1:{port}", timeout_s=300) as client:
                wait_until_ready(client)
                client.score(warm_up)
                start = time.perf_counter()
                answer = client.score(request)
                seconds = time.perf_counter() - start
        finally:
            process.terminate()
            process.wait(30)
    assert answer.stats.cached == 0, "every pointer is to be generated"
    return sum(len(result.candidates) for result in answer.results) / seconds


def wait_until_ready(client: ScorerClient) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            return client.ready()
        except LeverPlusError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


@torch.inference_mode()
def stock(dataset: Dataset, vlm: Path, beams: int, request: ScoreRequest) -> tuple[float, float]:
    """Pointers a second of transformers' generate at batch 32 on one thread, and the mean number of tokens of a prompt."""
    torch.set_num_threads(1)
    processor = load_processor(vlm)
    model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(vlm, dtype=torch.float32).eval()
    prompts: list[tuple[list[Shot], Shot]] = []
    for query in request.queries:
        item = dataset.item(query.query_id)
        for pointer in query.pointers:
            shown = [dataset.item(item_id) for item_id in pointer]
            shots = [Shot(dataset.image_path(one.item_id), one.question, one.answer) for one in shown]
            prompts.append((shots, Shot(dataset.image_path(item.item_id), item.question)))
    tokens = 0
    start = time.perf_counter()
    for begin in range(0, len(prompts), BATCH):
        batch = prompts[begin : begin + BATCH]
        texts = [
            processor.apply_chat_template(SHORT_ANSWER.messages(shots, query), add_generation_prompt=True, tokenize=False)
            for shots, query in batch
        ]
        images = [read_image(shot.image) for shots, query in batch for shot in (*shots, query)]
        inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
        tokens += int(inputs["attention_mask"].sum())
        model.generate(**inputs, max_new_tokens=5, num_beams=beams, do_sample=False, length_penalty=0.0 if beams > 1 else None)
    return len(prompts) / (time.perf_counter() - start), tokens / len(prompts)


def multiply_adds_per_s(threads: int) -> float:
    torch.set_num_threads(threads)
    left, right = torch.randn(4096, 1024), torch.randn(1024, 1024)
    best = 0.0
    for _ in range(10):
        start = time.perf_counter()
        left @ right
        best = max(best, left.shape[0] * left.shape[1] * right.shape[1] / (time.perf_counter() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vlm", type=Path, default=ROOT / "assets" / "small-vlm")
    parser.add_argument("--pointers", type=int, default=640)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = DataRoot(Path(folder))
        import_easy_vqa(
            root.dataset("bench"), name="bench", train_images=40, test_images=40, questions_per_image=3, val_share=0.0
        )
        dataset = Dataset.open(root.dataset("bench"))
        request = build_request(dataset, arguments.pointers)
        last = request.queries[-1]
        warm_up = ScoreRequest(dataset="bench", queries=[ScoreQuery(query_id=last.query_id, pointers=[[]])])
        (greedy, tokens), (beams, _) = (stock(dataset, arguments.vlm, count, request) for count in (1, 3))
        rows: list[dict[str, float]] = []
        for threads, count in SETTINGS:
            rate = through_http(root.path, arguments.vlm, threads, count, request, warm_up)
            rows.append({"threads": threads, "beams": count, "pointers_per_s": rate})
    weights = sum(part.numel() for part in text_weights(arguments.vlm))
    limits = {threads: multiply_adds_per_s(threads) for threads in (1, 2)}
    for row in rows:
        row["ratio_to_stock"] = row["pointers_per_s"] / (greedy if row["beams"] == 1 else beams)
        row["share_of_limit"] = row["pointers_per_s"] * tokens * weights / limits[int(row["threads"])]
        print(
            f"{row['threads']} threads, {row['beams']} beams: {row['pointers_per_s']:.0f} pointers/s, "
            f"{row['ratio_to_stock']:.2f} × stock on one thread, {100 * row['share_of_limit']:.0f} % of the multiply-add limit"
        )
    write_json(
        RESULTS / "scorer_cpu.json",
        {
            "command": "python benchmarks/scorer_cpu.py",
            "seed": 0,
            "machine": machine(),
            "commit": commit(),
            "vlm": arguments.vlm.name,
            "pointers": arguments.pointers,
            "mean_tokens": tokens,
            "weights_a_token_meets": weights,
            "multiply_adds_per_s": {str(threads): limit for threads, limit in limits.items()},
            "stock_pointers_per_s": {"greedy": greedy, "3 beams": beams},
            "rows": rows,
        },
    )


def text_weights(vlm: Path) -> list[torch.Tensor]:
    """Matrices of the language model that every token of a prompt is multiplied with."""
    model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(vlm)
    return [part for part in model.model.language_model.layers.parameters() if part.dim() == 2]


if __name__ == "__main__":
    main()
