"""Two-shot pointers a second through POST /score of the real scorer process, on this machine's cores.

    python benchmarks/scorer_cpu.py [--vlm assets/in-context-vlm] [--pointers 640] [--repeats 3]

Queries and random pools of 64 come from `invented-words`. Each setting of threads and beams gets a server process of its own with
the environment that the launcher gives it, and an empty database; requests are cut and kept in flight by the trainer's own code.
Every repeat asks for other queries, so that nothing is found in the store. Beside them, in the same run: transformers' `generate`
on the same prompts at the same batch size; the multiply-adds that the scorer's engine makes for a pointer (counted as it runs,
without the vision tower, whose features are kept); and the machine's limit, the best rate of a large float32 matrix product.
Run it on an idle machine; OMP_WAIT_POLICY and its like reach the server. Writes benchmarks/results/scorer_cpu.json.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from provenance import RESULTS, ROOT, commit, machine
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

from leverplus.client import ScorerClient
from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset
from leverplus.dataset.invented_words import generate
from leverplus.errors import LeverPlusError
from leverplus.files import write_json
from leverplus.ids import ItemId
from leverplus.images import read_image
from leverplus.launcher import Ports, StackConfig
from leverplus.prompts import SHORT_ANSWER, Shot
from pointer_trainer.replicas import Replicas
from pointer_trainer.scored_queries import AskedQuery, Scorer, Traffic
from vqa_scorer.engines import ScoringPrompt
from vqa_scorer.engines.decoding import GenerationArguments
from vqa_scorer.engines.processor import load_processor
from vqa_scorer.engines.transformers import TransformersEngine
from vqa_scorer.settings import ScorerSettings

NAME, TRAIN_ITEMS, POOL, PER_QUERY = "bench", 400, 64, 20
BATCH = TransformersEngine(ROOT).batch_size
NEW_TOKENS = int(ScorerSettings.model_fields["max_new_tokens"].default)
THREADS, BEAMS = (1, 2), (1, 3)
WANTED = {1: 100, 3: 40}
"""Pointers a second by beams."""
SAMPLE = 5 * BATCH
"""Prompts that are counted, and given to stock `generate`."""


def draw_queries(dataset: Dataset, count: int) -> list[AskedQuery]:
    """Queries with PER_QUERY two-shot pointers each, out of a random pool of their own."""
    draw = random.Random(0)
    train = dataset.split_ids("train")
    queries: list[AskedQuery] = []
    for query_id in dataset.split_ids("test")[:count]:
        pairs = list(permutations(draw.sample(train, POOL), 2))
        queries.append(AskedQuery(query_id, tuple(draw.sample(pairs, PER_QUERY))))
    return queries


def prompts_of(dataset: Dataset, queries: Sequence[AskedQuery]) -> list[ScoringPrompt]:
    def shot(item_id: ItemId, *, solved: bool) -> Shot:
        item = dataset.item(item_id)
        return Shot(dataset.image_path(item_id), item.question, item.answer if solved else None)

    return [
        ScoringPrompt(tuple(shot(ItemId(item), solved=True) for item in pointer), shot(ItemId(query.query_id), solved=False))
        for query in queries
        for pointer in query.pointers
    ]


@contextmanager
def serving(data: Path, vlm: Path, threads: int, beams: int) -> Generator[ScorerClient]:
    """A scorer process as the launcher starts it, with an empty database."""
    ports = Ports.free()
    with tempfile.TemporaryDirectory() as folder:
        stack = StackConfig(
            data=data,
            vlm=vlm,
            ports=ports,
            threads=threads,
            devices=("cpu",),
            database_url=f"sqlite:///{folder}/store.sqlite",
            variables={"LEVERPLUS_NUM_BEAMS": str(beams)},
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "vqa_scorer"], env={**os.environ, **stack.environment("")}, stderr=subprocess.DEVNULL
        )
        try:
            with ScorerClient(stack.url(ports.scorer), timeout_s=300) as client:
                wait_until_ready(client)
                yield client
        finally:
            process.terminate()
            process.wait(30)


def wait_until_ready(client: ScorerClient) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            return client.ready()
        except LeverPlusError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def pointers_per_s(client: ScorerClient, queries: Sequence[AskedQuery]) -> float:
    """From the first request to the last answer, as the trainer asks."""
    with Replicas([client.base_url]) as replicas:
        scorer = Scorer(replicas, NAME, flavour="official", check=lambda: None)
        start = time.perf_counter()
        batches = list(scorer.score(queries))
        seconds = time.perf_counter() - start
    if any(batch.stats.cached for batch in batches):
        raise AssertionError("every pointer is to be generated")
    return sum(len(candidates) for batch in batches for _, candidates in batch.queries) / seconds


@torch.inference_mode()
def stock(vlm: Path, threads: int, beams: int, prompts: Sequence[ScoringPrompt]) -> float:
    """Pointers a second of transformers' generate at the scorer's batch size, processor and pictures included."""
    torch.set_num_threads(threads)
    processor = load_processor(vlm)
    model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(vlm, dtype=torch.float32).eval()
    length_penalty = 0.0 if beams > 1 else None
    start = time.perf_counter()
    for begin in range(0, len(prompts), BATCH):
        batch = prompts[begin : begin + BATCH]
        texts = [
            processor.apply_chat_template(
                SHORT_ANSWER.messages(prompt.demonstrations, prompt.query), add_generation_prompt=True, tokenize=False
            )
            for prompt in batch
        ]
        images = [read_image(shot.image) for prompt in batch for shot in (*prompt.demonstrations, prompt.query)]
        inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
        model.generate(**inputs, max_new_tokens=NEW_TOKENS, num_beams=beams, do_sample=False, length_penalty=length_penalty)
    return len(prompts) / (time.perf_counter() - start)


def multiply_adds_a_pointer(vlm: Path, beams: int, prompts: Sequence[ScoringPrompt]) -> float:
    """What the scorer's engine computes in matrix products and attention, padding included."""
    engine = TransformersEngine(vlm, device="cpu", arguments=GenerationArguments(num_beams=beams), batch_size=BATCH)
    engine.load()
    engine.generate(prompts)  # the pictures' features are kept from here on

    def attention(query: Sequence[int], key: Sequence[int], *_: Any, **__: Any) -> int:
        batch, heads, asked, width = query
        return 4 * batch * heads * asked * key[2] * width

    def added_product(_: Any, left: Sequence[int], right: Sequence[int], **__: Any) -> int:
        return 2 * left[0] * left[1] * right[1]

    known = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention, torch.ops.aten.addmm_: added_product}
    with FlopCounterMode(display=False, custom_mapping=known) as counted:
        engine.generate(prompts)
    return counted.get_total_flops() / 2 / len(prompts)


def multiply_adds_per_s(threads: int, rows: int, inner: int, columns: int) -> float:
    """Best rate of the product of float32 matrices [rows, inner] and [inner, columns]."""
    torch.set_num_threads(threads)
    left, right, out = torch.randn(rows, inner), torch.randn(inner, columns), torch.empty(rows, columns)
    best = 0.0
    for _ in range(30):
        start = time.perf_counter()
        torch.mm(left, right, out=out)
        best = max(best, rows * inner * columns / (time.perf_counter() - start))
    return best


def mean_tokens(vlm: Path, prompts: Sequence[ScoringPrompt]) -> float:
    """Tokens of a prompt, its pictures' included."""
    processor = load_processor(vlm)
    lengths: list[int] = []
    for prompt in prompts:
        messages = SHORT_ANSWER.messages(prompt.demonstrations, prompt.query)
        text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        images = [read_image(shot.image) for shot in (*prompt.demonstrations, prompt.query)]
        lengths.append(processor(text=[text], images=images, return_tensors="pt")["input_ids"].shape[1])
    return statistics.mean(lengths)


def measure(arguments: argparse.Namespace, root: DataRoot) -> dict[str, Any]:
    vlm: Path = arguments.vlm
    a_repeat = arguments.pointers // PER_QUERY
    for_warm_up = Traffic().pointers_a_request // PER_QUERY
    count = for_warm_up + arguments.repeats * a_repeat
    generate(root.dataset(NAME), name=NAME, train=TRAIN_ITEMS, val=1, test=count)
    dataset = Dataset.open(root.dataset(NAME))
    queries = draw_queries(dataset, count)
    warm_up, asked = queries[:for_warm_up], queries[for_warm_up:]
    prompts = prompts_of(dataset, asked)[:SAMPLE]
    text = AutoConfig.from_pretrained(vlm).text_config
    tokens = mean_tokens(vlm, prompts)
    layer = (BATCH * round(tokens), text.hidden_size, text.intermediate_size)
    limits = {threads: multiply_adds_per_s(threads, 4096, 1024, 1024) for threads in THREADS}
    work = {beams: multiply_adds_a_pointer(vlm, beams, prompts) for beams in BEAMS}
    rows: list[dict[str, Any]] = []
    for threads in THREADS:
        for beams in BEAMS:
            with serving(root.path, vlm, threads, beams) as client:
                pointers_per_s(client, warm_up)
                rates = [pointers_per_s(client, asked[start : start + a_repeat]) for start in range(0, len(asked), a_repeat)]
            rows.append({"threads": threads, "beams": beams, "pointers_per_s": statistics.median(rates), "repeats": rates})
    for threads in THREADS:  # once more: the machine may have been busy the first time
        limits[threads] = max(limits[threads], multiply_adds_per_s(threads, 4096, 1024, 1024))
    whole_machine = max(limits.values())
    for row in rows:
        rate, beams, threads = row["pointers_per_s"], row["beams"], row["threads"]
        row["wanted"], row["met"] = WANTED[beams], rate >= WANTED[beams]
        row["multiply_adds_a_pointer"] = work[beams]
        row["share_of_limit_of_its_threads"] = rate * work[beams] / limits[threads]
        row["share_of_limit_of_the_machine"] = rate * work[beams] / whole_machine
        row["stock_pointers_per_s"] = stock(vlm, threads, beams, prompts)
    return {
        "vlm": vlm.name,
        "pointers": arguments.pointers,
        "batch_size": BATCH,
        "mean_tokens": tokens,
        "multiply_adds_per_s": {str(threads): limit for threads, limit in limits.items()},
        "multiply_adds_per_s_in_a_layers_product": {str(threads): multiply_adds_per_s(threads, *layer) for threads in THREADS},
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vlm", type=Path, default=ROOT / "assets" / "in-context-vlm")
    parser.add_argument("--pointers", type=int, default=640, help=f"a repeat; whole queries of {PER_QUERY}")
    parser.add_argument("--repeats", type=int, default=3, help="of which the median counts")
    parser.add_argument("--out", type=Path, default=RESULTS / "scorer_cpu.json")
    arguments = parser.parse_args()
    if arguments.pointers < PER_QUERY or arguments.repeats < 1:
        parser.error(f"at least {PER_QUERY} pointers and 1 repeat")
    before = machine()
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(arguments, DataRoot(Path(folder)))
    for row in measured["rows"]:
        repeats = ", ".join(f"{rate:.0f}" for rate in row["repeats"])
        print(
            f"{row['threads']} threads, {row['beams']} beams: {row['pointers_per_s']:.0f} pointers/s "
            f"({'at least' if row['met'] else 'NOT'} {row['wanted']}; repeats {repeats}), "
            f"stock generate {row['stock_pointers_per_s']:.0f}; {row['multiply_adds_a_pointer'] / 1e6:.0f} M multiply-adds each, "
            f"{100 * row['share_of_limit_of_its_threads']:.0f} % of its threads' limit, "
            f"{100 * row['share_of_limit_of_the_machine']:.0f} % of the machine's"
        )
    openmp = {name: value for name, value in os.environ.items() if name.startswith(("OMP_", "KMP_", "GOMP_"))}
    header = {"command": "python " + " ".join(sys.argv), "seed": 0, "machine": before, "openmp": openmp, "commit": commit()}
    write_json(arguments.out, {**header, **measured})


if __name__ == "__main__":
    main()
