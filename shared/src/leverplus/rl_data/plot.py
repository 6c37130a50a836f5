"""A report of RL data as a PNG. Needs matplotlib, which comes with the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from leverplus.files import atomic_file


def plot_report(report: Mapping[str, Any], path: Path) -> None:
    """What `inspect` found, in four panels: rewards, positives a query, shots, modes. `path`: a PNG file."""
    figure = Figure(figsize=(11, 7), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{Path(report['file']).name}: {report['queries']:,} queries, {report['candidates']:,} candidates")
    rewards, positives, shots, modes = figure.subplots(2, 2).flat
    bars, mode = report["rewards"]["histogram"], report["rewards"]["mode"]
    # Distinct rewards are labelled by their value, intervals by where they begin.
    labels = [f"{bar['from']:.3g}" if bar["from"] == bar["to"] else f"{bar['from']:.2f} to" for bar in bars]
    _bars(rewards, labels, [bar["count"] for bar in bars], f"Rewards ({mode}), {report['rewards']['distinct']:,} distinct")
    rewards.set(xlabel="reward of a pointer with demonstrations, raw", ylabel="candidates")
    counts: Mapping[str, int] = report["positives_per_query"]
    _bars(positives, list(counts), list(counts.values()), "Positives a query (0: nothing to learn from)")
    positives.set(xlabel="candidates with vqa_correct = 1", ylabel="queries")
    _bars(shots, list(report["shots"]), list(report["shots"].values()), "Number of demonstrations")
    shots.set(xlabel="shots (0: zero-shot)", ylabel="candidates")
    found = {name: value["count"] for name, value in report["modes"].items()}
    _bars(modes, list(found), list(found.values()), "How they were scored")
    modes.set(xlabel="vqa_eval_mode", ylabel="candidates")
    with atomic_file(path) as stream:
        figure.savefig(stream, format="png")


def _bars(axes: Axes, labels: Sequence[str], heights: Sequence[int], title: str) -> None:
    drawn = axes.bar(range(len(labels)), heights, color="tab:blue")
    axes.set_xticks(range(len(labels)), labels, rotation=60 if len(labels) > 10 else 0)
    if len(labels) <= 10:
        axes.bar_label(drawn, labels=[f"{height:,}" for height in heights], fontsize=8)
    axes.set_title(title)
    axes.margins(y=0.12)
    axes.grid(visible=True, axis="y", alpha=0.3)
    axes.set_axisbelow(True)
