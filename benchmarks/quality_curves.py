"""The curves of docs/quality.md: headroom closed at two shots over queries, candidates and VLM calls.

python benchmarks/quality_curves.py benchmarks/results/{quality_val_{data,rounds}*,online_rounds}.json --out FILE.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import orjson
from quality import unpacked


def closed(results: Sequence[dict[str, Any]], table: str) -> dict[tuple[str, int, int], list[list[tuple[int, float]]]]:
    """By system, queries and candidates a query: for each seed (VLM calls, share closed in percent) after every round."""
    found: dict[tuple[str, int, int], list[list[tuple[int, float]]]] = {}
    for result in results:
        low, high = (np.mean(result["references"][name]) for name in ("random", "oracle"))
        for run in result["runs"]:
            if run["table"] != table:
                continue
            shares = [100 * (unpacked(row["accuracies"]["2"]).mean() - low) / (high - low) for row in run["rows"]]
            rows = [(row["vlm_calls"], float(share)) for row, share in zip(run["rows"], shares, strict=True)]
            found.setdefault((run["system"], run["queries"], 2 * (run["at_most"] or 0)), []).append(rows)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="of the tables data, rounds and online")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    results = [orjson.loads(path.read_bytes()) for path in arguments.results]
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    data = closed(results, "data")
    for system, style in (("v5, RCE", "-"), ("v5, answers, RCE", "--")):
        for candidates in (4, 8, 16, 32):
            cells = sorted(
                (queries, runs) for (name, queries, each), runs in data.items() if (name, each) == (system, candidates)
            )
            if not cells:
                continue
            last = [[rows[-1][1] for rows in runs] for _, runs in cells]
            means, color = [np.mean(values) for values in last], f"C{(4, 8, 16, 32).index(candidates)}"
            left.plot([queries for queries, _ in cells], means, style, marker=".", color=color, label=f"{system}, {candidates}")
            left.fill_between(
                [queries for queries, _ in cells], list(map(min, last)), list(map(max, last)), alpha=0.15, color=color
            )
    left.set(
        xscale="log",
        xlabel="train queries",
        ylabel="headroom closed, 2 shots (%)",
        title="Data: candidates a query",
        ylim=(0, 100),
    )
    left.set_xticks([250, 500, 1000, 2000, 4000], labels=["250", "500", "1,000", "2,000", "4,000"])
    left.minorticks_off()
    left.legend(fontsize=6)
    named = [
        (f"{system}, {queries:,} queries{scorer}", runs)
        for table, scorer in (("rounds", ""), ("online", ", live scorer"))
        for (system, queries, _), runs in closed(results, table).items()
    ]
    for number, (name, runs) in enumerate(named):
        for rows in runs:
            calls, shares = zip(*rows, strict=True)
            right.plot([one / 1000 for one in calls], shares, color=f"C{number}", linewidth=0.8, alpha=0.3)
        mean = np.mean(runs, axis=0)
        right.plot(mean[:, 0] / 1000, mean[:, 1], marker=".", color=f"C{number}", label=name)
    right.set(xlabel="VLM calls (thousands)", title="Rounds: mean and each seed")
    right.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(arguments.out, dpi=110)


if __name__ == "__main__":
    main()
