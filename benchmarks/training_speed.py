"""Queries a second of a training step: ours in batches, beside a plain loop over queries that copies the pool for each candidate.

    python benchmarks/training_speed.py [--device cpu] [--queries 512] [--out benchmarks/results/training_speed.json]

RCE on random data of the reference's shape: 20 two-shot candidates, pools of 64, embeddings of 512 values, hidden width 256,
three layers; forward, backward, clipping and AdamW. The plain loop makes an optimiser step a query, as code does that was written
for one. Ours is the trainer's own phase: batches of `--batch-size` queries gathered from the table, metrics and checks
included. One torch thread on a CPU.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import RESULTS, commit, machine
from torch import Tensor, nn

from leverplus.embeddings import Block, EmbeddingManifest, Embeddings
from leverplus.ids import ItemId
from leverplus.selector import PointerSelectorV3, SelectorConfig
from pointer_trainer.batches import QueryExample
from pointer_trainer.epochs import run_phase
from pointer_trainer.example_table import ExampleTable
from pointer_trainer.phases import planned_phases
from pointer_trainer.train_config import read_train_config
from pointer_trainer.training_state import TrainingState

CANDIDATES, POOL, D_MODEL, HIDDEN, LAYERS, SHOTS, ITEMS = 20, 64, 512, 256, 3, 2, 9_009
TEMPERATURE, LEARNING_RATE = 1.0, 1e-4


class PlainSelector(nn.Module):
    """The same model as straightforward code has it: every candidate pointer is a row with a pool of its own."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.input_proj = nn.Linear(D_MODEL, HIDDEN, bias=False)
        self.attentions = nn.ModuleList(nn.MultiheadAttention(HIDDEN, 1, batch_first=True) for _ in range(LAYERS))
        self.norms = nn.ModuleList(nn.LayerNorm(HIDDEN) for _ in range(LAYERS))
        self.query_proj, self.cand_proj = nn.Linear(HIDDEN, HIDDEN, bias=False), nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, pool: Tensor, pointers: Tensor) -> Tensor:
        """query [C, d], pool [C, K, d], pointers [C, S] → log π [C]"""
        state, items = self.input_proj(query), self.input_proj(pool)
        for attention, norm in zip(self.attentions, self.norms, strict=True):
            state = norm(attention(state[:, None], items, items)[0][:, 0] + state)
        state = nn.functional.normalize(self.query_proj(self.dropout(state)), dim=-1)
        items = nn.functional.normalize(self.cand_proj(self.dropout(items)), dim=-1)
        logits = (items @ state[:, :, None])[:, :, 0] / 0.1
        total = torch.zeros(len(query), device=query.device)
        for step in range(pointers.shape[1]):
            chosen = pointers[:, step]
            total = total + logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0]
            logits = logits.scatter(1, chosen[:, None], -100.0)
        return total


def draw_examples(count: int) -> list[QueryExample]:
    draw = np.random.default_rng(0)
    return [
        QueryExample(
            query_id=ItemId(number % ITEMS),
            pool=draw.choice(ITEMS, POOL, replace=False),
            positions=np.stack([draw.choice(POOL, SHOTS, replace=False) for _ in range(CANDIDATES)]),
            rewards=draw.uniform(0, 2, CANDIDATES).astype(np.float32),
        )
        for number in range(count)
    ]


def optimise(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def plain_loop(examples: list[QueryExample], embeddings: Tensor, dropout: float) -> Callable[[], None]:
    model = PlainSelector(dropout).to(embeddings.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)

    def run() -> None:
        for example in examples:
            query = embeddings[example.query_id].expand(CANDIDATES, -1)
            pool = embeddings[torch.from_numpy(example.pool).to(embeddings.device)].expand(CANDIDATES, -1, -1)
            pointers = torch.from_numpy(example.positions).to(embeddings.device)
            rewards = torch.from_numpy(example.rewards).to(embeddings.device)
            weights = ((rewards - rewards.mean()) / rewards.std() / TEMPERATURE).softmax(0)
            optimise(model, optimizer, -(weights * model(query.contiguous(), pool.contiguous(), pointers)).sum())

    return run


def trainer(
    examples: list[QueryExample], embeddings: Embeddings, device: str, dropout: float, batch_size: int
) -> Iterator[float]:
    """The phase of RCE as a job runs it, up to a thousand epochs: seconds of each, judging one held-out query included."""
    settings = {"rce_epochs": 1000, "batch_size": batch_size, "rce_lr": LEARNING_RATE}
    config = read_train_config({**settings, "hidden_dim": HIDDEN, "num_layers": LAYERS, "dropout": dropout})
    model = PointerSelectorV3(SelectorConfig(d_model=D_MODEL, hidden_dim=HIDDEN, num_layers=LAYERS, dropout=dropout)).to(device)
    table, held_out = (ExampleTable(some, embeddings, device) for some in (examples, examples[:1]))
    state = TrainingState(phase="rce")
    epochs = run_phase(
        planned_phases(config)[0], config, model, table, held_out, lambda *_: None, lambda: False, state, logging.getLogger()
    )
    for _ in range(2):  # before the first epoch; the first, which warms up
        state.rows.append(next(epochs))
    while True:
        started = time.perf_counter()
        state.rows.append(next(epochs))
        yield time.perf_counter() - started


def seconds(run: Callable[[], None], device: str) -> float:
    started = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--queries", type=int, default=512)
    parser.add_argument("--plain-queries", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "training_speed.json")
    parser.add_argument("--commit", help="of the sources, where git is not at hand")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    matrix = torch.nn.functional.normalize(torch.randn(ITEMS, D_MODEL), dim=1)
    manifest = EmbeddingManifest({"name": "random"}, "0" * 64, (Block("joint", 0, D_MODEL),), D_MODEL, ITEMS, "same", "reference")
    embeddings = Embeddings(matrix.numpy(), matrix.numpy(), manifest)
    examples = draw_examples(arguments.queries)
    rows: list[dict[str, Any]] = []
    for dropout in (0.1, 0.0):
        plain = plain_loop(examples[: arguments.plain_queries], matrix.to(arguments.device), dropout)
        ours = trainer(examples, embeddings, arguments.device, dropout, arguments.batch_size)
        plain()
        of_plain: list[float] = []
        of_ours: list[float] = []
        for _ in range(arguments.repeats):  # in turns, so that other work on the machine strikes both
            of_plain.append(arguments.plain_queries / seconds(plain, arguments.device))
            of_ours.append(arguments.queries / next(ours))
        row = {"dropout": dropout, "plain": statistics.median(of_plain), "ours": statistics.median(of_ours)}
        row |= {"ratio": row["ours"] / row["plain"], "plain_repeats": of_plain, "ours_repeats": of_ours}
        rows.append(row)
        print(f"dropout {dropout}: plain loop {row['plain']:.1f} queries/s, ours {row['ours']:.1f}, {row['ratio']:.1f} times")
    device = torch.cuda.get_device_name() if arguments.device != "cpu" else None
    shape = {"candidates": CANDIDATES, "pool": POOL, "d_model": D_MODEL, "hidden": HIDDEN, "layers": LAYERS, "shots": SHOTS}
    settings = {"device": arguments.device, "queries": arguments.queries, "batch-size": arguments.batch_size}
    result = {
        "command": f"python benchmarks/training_speed.py {' '.join(f'--{name} {settings[name]}' for name in settings)}",
        "seed": 0,
        "machine": machine() | {"device": device, "torch": torch.__version__, "torch_threads": 1},
        "commit": arguments.commit or commit(),
        "shape": shape,
        "queries_per_s": rows,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
