"""An evaluation's plots, each as an SVG element to stand in a page."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from leverplus.evaluation import Evaluation, Row
from leverplus.evaluation.tables import against

_SPREAD = 0.12
"""How far apart, in shots, the points of all systems lie beside each other."""


def accuracy_plot(evaluation: Evaluation) -> str:
    """Accuracy with its interval by number of shots, a line a system; zero-shot as a level."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    systems = list(dict.fromkeys(row.system for row in evaluation.rows))
    for place, system in enumerate(systems):
        rows = sorted((row for row in evaluation.rows if row.system == system), key=lambda row: row.shots)
        colour = f"C{place % 10}"
        if all(row.shots == 0 for row in rows):
            axes.axhline(100 * rows[0].mean, color=colour, linestyle="--", label=system)
            continue
        shift = _SPREAD * (2 * place / max(1, len(systems) - 1) - 1)
        x = [row.shots + shift for row in rows]
        y = [100 * row.mean for row in rows]
        axes.errorbar(x, y, yerr=_errors(rows), label=system, color=colour, marker="o", ms=4, capsize=2)
    axes.set_xlabel("shots")
    axes.set_ylabel("VQA accuracy, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8)
    return _svg(figure)


def difference_plot(evaluation: Evaluation) -> str:
    """Every paired difference with its interval; none to be seen at the line of 0."""
    rows = evaluation.differences
    figure = Figure(figsize=(9, 1 + 0.24 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        is_shown = row.p_holm is not None and row.p_holm < 0.05
        axes.plot(100 * row.difference, place, marker="o", ms=4, color="tab:blue" if is_shown else "tab:gray")
        if row.low is not None and row.high is not None:
            axes.plot([100 * row.low, 100 * row.high], [place, place], color="tab:blue" if is_shown else "tab:gray")
    axes.axvline(0, color="black", linewidth=0.8)
    labels = [f"{row.system} at {row.shots} − {against(row)}" for row in rows]
    axes.set_yticks(range(len(rows)), labels=labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("difference in points (blue: p < 0.05 after Holm)")
    axes.grid(visible=True, axis="x", alpha=0.3)
    return _svg(figure)


def size_plot(parts: Sequence[Evaluation]) -> str:
    """Accuracy with its interval by number of queries, at the largest number of shots."""
    most = max(row.shots for row in parts[-1].rows)
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    systems = [row.system for row in parts[-1].rows if row.shots == most]
    for place, system in enumerate(systems):
        rows = [row for part in parts for row in part.rows if (row.system, row.shots) == (system, most)]
        x = [row.n * 1.02 ** (place - len(systems) / 2) for row in rows]
        axes.errorbar(x, [100 * row.mean for row in rows], yerr=_errors(rows), label=system, marker="o", ms=4, capsize=2)
    axes.set_xscale("log")
    axes.set_xlabel("queries")
    axes.set_ylabel(f"VQA accuracy at {most} shots, %")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8)
    return _svg(figure)


def _errors(rows: Sequence[Row]) -> np.ndarray | None:
    """[2, rows] in percent, as matplotlib takes them; None where there is no interval."""
    bounds = [(row.mean, row.low, row.high) for row in rows]
    known = [(mean - low, high - mean) for mean, low, high in bounds if low is not None and high is not None]
    # A percentile interval of few images may lie beside the mean.
    return 100 * np.maximum(0.0, np.asarray(known).T) if len(known) == len(rows) else None


def _svg(figure: Figure) -> str:
    stream = io.StringIO()
    FigureCanvasSVG(figure)
    # The same bytes for the same result: no date, no random ids. Text stays text.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "leverplus"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue().partition("<svg")[1] + stream.getvalue().partition("<svg")[2]
