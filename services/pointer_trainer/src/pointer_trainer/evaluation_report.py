"""An evaluation's result as Markdown and as one HTML page, with how its numbers came about and what they do not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from leverplus.evaluation import Evaluation, accuracy_table, difference_table
from leverplus.evaluation.tables import against, percent, shots_title
from pointer_trainer.evaluation_plots import accuracy_plot, difference_plot, size_plot
from pointer_trainer.openings import Opening, opened_note

_ANSWERS = {
    "human": "human answers",
    "replicated": "one answer, repeated ten times in place of ten annotators'",
    "simulated": "simulated answers of ten annotators",
}

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #ddd; padding: .25rem .75rem; text-align: right; }
th:first-child, td:first-child { text-align: left; }
.warning { background: #fff4d6; border-left: 4px solid #d90; padding: .5rem 1rem; }
svg { max-width: 100%; height: auto; }
"""


def as_markdown(result: Mapping[str, Any]) -> str:
    """Everything but the plots. The head ends where the first table begins."""
    evaluation = evaluation_of(result)
    head = "".join(f"{line}\n\n" for line in [*_head(result, evaluation), *(f"Warning: {line}" for line in result["warnings"])])
    differences = f"\n{difference_table(evaluation)}" if evaluation.differences else ""
    return f"{head}{accuracy_table(evaluation)}{differences}{_sizes(result)}"


def as_html(result: Mapping[str, Any]) -> str:
    """One file that loads nothing: styles and plots (SVG) are inside."""
    evaluation = evaluation_of(result)
    sizes = [evaluation_of(part) for part in result["sizes"]]
    title = f"{result['dataset']}, {result['split']}"
    body = [
        f"<h1>Evaluation: {escape(title)}</h1>",
        *(f"<p>{escape(line)}</p>" for line in _head(result, evaluation)),
        *(f'<p class="warning">{escape(line)}</p>' for line in result["warnings"]),
        "<h2>Accuracy</h2>",
        accuracy_plot(evaluation),
        _accuracies(evaluation),
    ]
    if evaluation.differences:
        body += ["<h2>Paired differences</h2>", difference_plot(evaluation), _differences(evaluation)]
    if len(sizes) > 1:
        body += ["<h2>By number of queries</h2>", size_plot(sizes), _by_size(sizes)]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(body) + "\n</body></html>\n"


def evaluation_of(result: Mapping[str, Any]) -> Evaluation:
    return Evaluation.from_json({name: result[name] for name in ("rows", "differences", "images", "draws", "seed")})


def _head(result: Mapping[str, Any], evaluation: Evaluation) -> list[str]:
    counts = result["scores"]
    lines = [
        f"VQA accuracy in percent with 95 % intervals, {result['queries']} queries of {result['dataset']}, split "
        f"{result['split']}, {evaluation.images} images; {_ANSWERS[result['answers_source']]}. Scores: {counts['file']} by the "
        f"metric over ten answers, {counts['fallback']} by fallback, {counts['error']} without; {result['queries_left_out']} "
        f"queries left out. random: mean of {result['random_draws']} draws a query.",
        f"Intervals: {evaluation.draws} bootstrap draws of images{_and_seeds(evaluation)}. p: permutation test over images, "
        f"after Holm over the {len(evaluation.differences)} comparisons made. Could show: the true difference that so many "
        "queries find four times in five.",
        opened_note([Opening.model_validate(opening) for opening in result["test_openings"]]),
    ]
    for one in result["unavailable"]:
        at = "" if one["shots"] is None else f" at {shots_title(one['shots'])}"
        lines.append(f"Not evaluated: {one['system']}{at}: {one['reason']}.")
    return lines


def _and_seeds(evaluation: Evaluation) -> str:
    return " and of training seeds" if any(row.seeds > 1 for row in evaluation.rows) else ""


def _sizes(result: Mapping[str, Any]) -> str:
    """The same accuracies on nested parts of the queries."""
    parts = [evaluation_of(part) for part in result["sizes"]]
    if len(parts) < 2:
        return ""
    lines = ["", f"| system | shots | {' | '.join(f'{part.rows[0].n} queries' for part in parts)} |"]
    lines.append(f"| --- | ---: |{' ---: |' * len(parts)}")
    lines += [f"| {' | '.join(row)} |" for row in _size_rows(parts)]
    return "\n".join(lines) + "\n"


def _size_rows(parts: Sequence[Evaluation]) -> list[list[str]]:
    found = [{(row.system, row.shots): row for row in part.rows} for part in parts]
    return [
        [system, str(shots), *(percent(row.mean, row.low, row.high) for row in (part[system, shots] for part in found))]
        for system, shots in found[-1]
    ]


def _accuracies(evaluation: Evaluation) -> str:
    shots = sorted({row.shots for row in evaluation.rows})
    found = {(row.system, row.shots): row for row in evaluation.rows}
    rows: list[list[str]] = []
    for system in dict.fromkeys(row.system for row in evaluation.rows):
        cells = [found.get((system, count)) for count in shots]
        rows.append([system, *("" if row is None else percent(row.mean, row.low, row.high) for row in cells)])
    return _table(["system", *(shots_title(count) for count in shots)], rows)


def _differences(evaluation: Evaluation) -> str:
    rows = [
        [
            row.system,
            str(row.shots),
            against(row),
            percent(row.difference, row.low, row.high, sign="+"),
            "" if row.p is None else f"{row.p:.4f}",
            "" if row.p_holm is None else f"{row.p_holm:.4f}",
            "" if row.minimum_effect is None else f"{100 * row.minimum_effect:.1f}",
        ]
        for row in evaluation.differences
    ]
    return _table(["system", "shots", "against", "difference (points)", "p", "p (Holm)", "could show (points)"], rows)


def _by_size(parts: Sequence[Evaluation]) -> str:
    return _table(["system", "shots", *(f"{part.rows[0].n} queries" for part in parts)], _size_rows(parts))


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], kind: str) -> str:
        return "<tr>" + "".join(f"<{kind}>{escape(cell)}</{kind}>" for cell in cells) + "</tr>"

    return f"<table>{line(titles, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"
