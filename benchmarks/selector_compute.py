"""Seconds to choose four demonstrations for one query: the selector as it is served, beside the plain forward in torch.

    python benchmarks/selector_compute.py [--pools 64 1024 9009 100000 443757] [--repeats 5]

Three layers, 512 → 256, four shots, one thread, random weights; the candidates' projections are made beforehand for ours, as in
the service, and not for the plain forward, which is written as a research repository writes it. The two are asked in turns and
must choose the same ids with the same log-probabilities. The floor: (layers + steps) passes over the K × 256 matrix at the rate
at which a dot product reads one of that size in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import torch
from provenance import RESULTS, commit, machine
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from leverplus.policies import selector_policy
from leverplus.selector import PointerSelectorV3, SelectorConfig

D_MODEL, HIDDEN, LAYERS, SHOTS = 512, 256, 3, 4
_SLOW_POOL = 100_000
"""From here on the plain forward takes seconds: it is asked less often."""


class PlainSelector(nn.Module):
    """The same weights under the same names."""

    def __init__(self) -> None:
        super().__init__()
        self.input_proj = nn.Linear(D_MODEL, HIDDEN, bias=False)
        self.cross_attn_layers = nn.ModuleList(nn.MultiheadAttention(HIDDEN, 1, batch_first=True) for _ in range(LAYERS))
        self.attn_norms = nn.ModuleList(nn.LayerNorm(HIDDEN) for _ in range(LAYERS))
        self.query_proj, self.cand_proj = nn.Linear(HIDDEN, HIDDEN, bias=False), nn.Linear(HIDDEN, HIDDEN, bias=False)

    @torch.no_grad()
    def forward(self, query: Tensor, candidates: Tensor) -> tuple[list[int], list[float]]:
        """query [1, d], candidates [1, K, d] → positions and their log-probabilities"""
        state, items = self.input_proj(query).unsqueeze(1), self.input_proj(candidates)
        for attention, norm in zip(self.cross_attn_layers, self.attn_norms, strict=True):
            state = norm(attention(state, items, items)[0] + state)
        state = nn.functional.normalize(self.query_proj(state.squeeze(1)), dim=-1)
        items = nn.functional.normalize(self.cand_proj(items), dim=-1)
        chosen: list[int] = []
        steps: list[float] = []
        taken = torch.zeros(1, candidates.shape[1], dtype=torch.bool)
        for _ in range(SHOTS):
            logits = (items @ state.unsqueeze(-1)).squeeze(-1) / 0.1
            logprobs = logits.masked_fill(taken, -100.0).log_softmax(-1)
            position = int(logprobs.argmax())
            taken[0, position] = True
            chosen.append(position)
            steps.append(float(logprobs[0, position]))
        return chosen, steps


def seconds(work: Callable[[], object], times: int) -> float:
    started = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - started) / times


def measure(pool: int, repeats: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = PointerSelectorV3(SelectorConfig(d_model=D_MODEL, hidden_dim=HIDDEN, num_layers=LAYERS)).eval()
    plain = PlainSelector().eval()
    plain.load_state_dict(model.state_dict())
    policy = selector_policy(model.tensors(), model.config)
    draw = np.random.default_rng(0)
    vectors = draw.standard_normal((pool, D_MODEL), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = draw.standard_normal((16, D_MODEL), dtype=np.float32)
    prepared = policy.prepare(vectors)
    candidates, asked = torch.from_numpy(vectors)[None], torch.from_numpy(queries)
    for number in range(2 if pool >= _SLOW_POOL else 16):
        choice = policy.choose(queries[number], prepared, SHOTS)
        positions, steps = plain(asked[number : number + 1], candidates)
        assert list(choice.positions) == positions, f"query {number} of pool {pool}"
        np.testing.assert_allclose(choice.step_logprobs, steps, atol=1e-4)
    times = {"plain": max(1, 4_000 // pool), "ours": max(2, 40_000 // pool), "batch": max(1, 4_000 // pool)}
    flat = prepared.context.reshape(-1)
    found: dict[str, list[float]] = {"plain": [], "ours": [], "batch": [], "read": []}
    for _ in range(repeats):  # in turns, so that other work on the machine strikes all
        found["ours"].append(seconds(lambda: policy.choose(queries[0], prepared, SHOTS), times["ours"]))
        found["read"].append(seconds(lambda: np.dot(flat, flat), times["ours"]))
        if pool < _SLOW_POOL or len(found["plain"]) < 2:
            found["plain"].append(seconds(lambda: plain(asked[:1], candidates), times["plain"]))
        found["batch"].append(seconds(lambda: policy.choose_many(queries, prepared, SHOTS), times["batch"]) / len(queries))
    median = {name: statistics.median(values) for name, values in found.items()}
    floor = (LAYERS + SHOTS) * median["read"]
    return {
        "pool": pool,
        **{f"{name}_us": round(value * 1e6, 1) for name, value in median.items()},
        "read_gb_per_s": round(flat.nbytes / median["read"] / 1e9, 1),
        "floor_us": round(floor * 1e6, 1),
        "plain_over_ours": round(median["plain"] / median["ours"], 1),
        "floor_over_ours": round(floor / median["ours"], 2),
        "repeats_us": {name: [round(value * 1e6, 1) for value in values] for name, values in found.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pools", type=int, nargs="+", default=[64, 1_024, 9_009, 100_000, 443_757])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "selector_compute.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    at_start = machine()
    rows = [measure(pool, arguments.repeats) for pool in arguments.pools]
    table = Table(title="One query, four shots, three layers; microseconds, one thread")
    for name in ("K", "plain torch", "ours", "times", "16 at once, each", "floor", "floor / ours"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row['pool']:,}", f"{row['plain_us']:,.0f}", f"{row['ours_us']:,.0f}", f"{row['plain_over_ours']:.1f}",
            f"{row['batch_us']:,.0f}", f"{row['floor_us']:,.0f}", f"{row['floor_over_ours']:.2f}",
        )  # fmt: skip
    Console(width=110).print(table)
    result = {
        "command": f"python benchmarks/selector_compute.py --repeats {arguments.repeats}",
        "seed": 0,
        "machine": at_start | {"torch": torch.__version__, "numpy": np.__version__},
        "commit": commit(),
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
