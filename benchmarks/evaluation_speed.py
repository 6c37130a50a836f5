"""Seconds of an evaluation's statistics: 10,000 queries × 20 systems, 10,000 draws, one thread.

python benchmarks/evaluation_speed.py
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when numpy is loaded

import numpy as np
from provenance import RESULTS, commit, machine

from leverplus.evaluation import summarise
from leverplus.evaluation.bootstrap import Clusters, interval, resampled_means
from leverplus.evaluation.permutation import sign_flip_p
from leverplus.files import write_json

BASELINES = ("zero-shot", "random", "best-fixed", "similar-image", "similar-text", "similar-joint")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--systems", type=int, default=20)
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "evaluation_speed.json")
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    names = [*BASELINES, *(f"v3 {number}" for number in range(arguments.systems - len(BASELINES)))]
    learned = names[len(BASELINES) :]
    cells = {(name, 2): (generator.random(arguments.queries) < 0.5).astype(np.float64) for name in names}
    # As many images as queries is the dearest case.
    images = [str(number) for number in range(arguments.queries)]
    columns = np.stack([*cells.values()], axis=1)
    differences = np.stack([cells[name, 2] - cells[other, 2] for name in learned for other in BASELINES], axis=1)
    clusters = Clusters.of(images)
    together = np.concatenate([columns, differences], axis=1)

    def bootstrap() -> None:
        drawn = resampled_means(together, clusters, arguments.draws, 0)
        for column in range(drawn.shape[1]):
            interval(drawn[:, column])

    def permutation() -> None:
        sign_flip_p(differences, clusters, arguments.draws, 0)

    def whole() -> None:
        summarise(cells, images, draws=arguments.draws, baselines=BASELINES, learned=learned)

    rows: dict[str, Any] = {}
    for name, work in (("bootstrap", bootstrap), ("permutation", permutation), ("summarise", whole)):
        seconds = [seconds_of(work) for _ in range(arguments.repeats)]
        rows[name] = {"median_s": round(float(np.median(seconds)), 2), "seconds": [round(one, 2) for one in seconds]}
        print(name, rows[name], flush=True)
    report = {
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit(),
        "machine": machine(),
        "queries": arguments.queries,
        "systems": arguments.systems,
        "paired_differences": differences.shape[1],
        "draws": arguments.draws,
        "rows": rows,
    }
    write_json(arguments.out, report)


def seconds_of(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
