"""The table of a result of benchmarks/quality.py, in Markdown, with intervals over images and training seeds.

python benchmarks/quality_report.py benchmarks/results/quality_test.json --system "v5, answers, RCE"
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from quality import unpacked
from rich.console import Console

from leverplus.evaluation import summarise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--table", default="main")
    parser.add_argument("--queries", type=int, help="of a table that has runs of several numbers of train queries")
    parser.add_argument("--system", default="v5, answers, RCE", help="which every other is compared with")
    arguments = parser.parse_args()
    result: dict[str, Any] = orjson.loads(arguments.result.read_bytes())
    references = {name: np.array(values) for name, values in result["references"].items()}
    low, high = references["random"].mean(), references["oracle"].mean()
    systems: dict[str, list[dict[str, Any]]] = {}
    for run in result["runs"]:
        if run["table"] == arguments.table and arguments.queries in (None, run["queries"]):
            systems.setdefault(run["system"], []).append(run)
    if arguments.system not in systems:
        there = sorted({(run["table"], run["queries"], run["system"]) for run in result["runs"]})
        parser.error("\n".join([f"no {arguments.system!r} in table {arguments.table!r} there; there are:", *map(str, there)]))
    last = {name: [run["rows"][-1] for run in runs] for name, runs in systems.items()}
    accuracies = {(name, 2): np.stack([unpacked(row["accuracies"]["2"]) for row in rows]) for name, rows in last.items()}
    accuracies |= {(name, 2): values for name, values in references.items() if name != "oracle"}
    others = [name for name, _ in accuracies if name != arguments.system]
    found = {
        name: summarise(
            {(arguments.system, 2): accuracies[arguments.system, 2], (name, 2): accuracies[name, 2]},
            result["images"],
            baselines=[name],
            seeded=[one for one in (arguments.system, name) if one in systems],
        ).differences[0]
        for name in others
    }
    lines = [
        "| system | seeds | VLM calls | 1 shot | 2 shots | headroom closed | less than it |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines = [line.replace("less than it", f"{arguments.system} less it") for line in lines]
    for name in sorted((name for name, _ in accuracies), key=lambda name: -accuracies[name, 2].mean()):
        two = accuracies[name, 2].mean()
        rows = last.get(name, [])
        by_seed = [(unpacked(row["accuracies"]["2"]).mean() - low) / (high - low) for row in rows]
        one = f"{100 * np.mean([unpacked(row['accuracies']['1']).mean() for row in rows]):.1f}" if rows else ""
        calls = f"{np.mean([row['vlm_calls'] for row in rows]):,.0f}" if rows else ""
        share = f"{100 * (two - low) / (high - low):.1f}"
        share += f" ({100 * min(by_seed):.1f} to {100 * max(by_seed):.1f})" if by_seed else ""
        gain = found.get(name)
        told = f"{100 * gain.difference:+.1f} [{100 * (gain.low or 0):+.1f}, {100 * (gain.high or 0):+.1f}]" if gain else ""
        lines.append(f"| {name} | {len(rows) or ''} | {calls} | {one} | {100 * two:.1f} | {share} | {told} |")
    lines.append(f"| structural oracle | | | | {100 * high:.1f} | 100 | |")
    Console(width=200).print("\n".join(lines), markup=False, highlight=False)


if __name__ == "__main__":
    main()
