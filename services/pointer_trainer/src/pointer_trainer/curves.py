"""A run's training curve and a sweep's children, each as a PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from leverplus.files import Fence, atomic_file

_TRAIN = {
    "answers": "train (telling answers, per query)",
    "supervised": "train (best beam, per demonstration)",
    "rce": "train (weighted, with temperature)",
    "expected_reward": "train (minus expected reward, plus KL)",
    "grpo": "train (clipped policy loss, plus KL)",
}


def plot_training_curve(epochs: Sequence[Mapping[str, Any]], best_epoch: int, path: Path, *, fence: Fence | None = None) -> None:
    """Left the losses, right the held-out expected reward between choosing at random and always choosing the best.

    `epochs` are the rows of one phase in metrics.jsonl; a value of None is left out of its line.
    """
    # Figure and canvas are made directly: pyplot keeps global state, and a worker may draw from any thread.
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    losses, rewards = figure.subplots(1, 2)
    _line(losses, epochs, "train_loss", _TRAIN[epochs[0]["phase"]], "tab:blue", "-")
    _line(losses, epochs, "held_out_rce", "held out (raw rewards, τ = 1)", "tab:orange", "-")
    losses.set_ylabel("loss; of RCE in nats per pointer")
    losses.set_title("Loss")
    _line(rewards, epochs, "held_out_expected_reward", "expected under the selector", "tab:green", "-")
    _line(rewards, epochs, "held_out_greedy_reward", "of the selector's first choice", "tab:olive", "-")
    _line(rewards, epochs, "held_out_uniform_reward", "any candidate at random", "tab:gray", "--")
    _line(rewards, epochs, "held_out_best_reward", "best candidate each time", "tab:gray", ":")
    rewards.set_ylabel("reward per group")
    best = [(row.get("held_out_best_reward"), row.get("held_out_uniform_reward")) for row in epochs]
    alike = all(one is not None and other is not None and abs(one - other) < 1e-9 for one, other in best)
    rewards.set_title("Held-out reward: all candidates score alike" if alike else "Held-out reward among scored candidates")
    for axes in (losses, rewards):
        axes.axvline(best_epoch, color="black", linewidth=0.8, alpha=0.4, label="epoch kept")
        axes.set_xlabel("epoch (0: before training)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize=8)
    with atomic_file(path, fence=fence) as stream:
        figure.savefig(stream, format="png")


def plot_sweep(report: Mapping[str, Any], path: Path, *, fence: Fence | None = None) -> None:
    """Each child's held-out value by which the table is sorted, in its order, coloured by the value of the first axis.

    `report` as `sweep_report.report` makes it; children without a value are left out.
    """
    rows = [row for row in report["rows"] if row[report["sorted_by"]] is not None]
    figure = Figure(figsize=(10, 1.5 + 0.25 * len(rows)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    by_first: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        by_first.setdefault(str(row["values"][report["names"][0]]), []).append(place)
    for value, places in by_first.items():
        found = [rows[place][report["sorted_by"]] for place in places]
        axes.plot(found, places, linestyle="none", marker="o", label=f"{report['names'][0]} = {value}")
    labels = [", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in row["values"].items()) for row in rows]
    axes.set_yticks(range(len(rows)), labels=labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(report["sorted_by"].replace("_", " "))
    axes.grid(visible=True, alpha=0.3)
    if 1 < len(by_first) <= 12:
        axes.legend(fontsize=8)
    with atomic_file(path, fence=fence) as stream:
        figure.savefig(stream, format="png")


def _line(axes: Axes, epochs: Sequence[Mapping[str, Any]], name: str, label: str, colour: str, style: str) -> None:
    points = [(row["epoch"], row[name]) for row in epochs if row.get(name) is not None]
    if points:
        axes.plot([x for x, _ in points], [y for _, y in points], label=label, color=colour, linestyle=style, marker="o", ms=3)
