"""`leverplus score`: pointers of a few queries from the command line, or of any number from a file."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leverplus.cli.options import SCORER, Json, ScorerUrl, item_ids, service_key
from leverplus.cli.services import validated

if TYPE_CHECKING:
    from leverplus.client import ScorerClient
    from leverplus.scoring import ScorePlanResponse, ScoreRequest, ScoreResponse

_LONGEST_SILENCE_S = 600.0
"""The scorer's own deadline comes first, unless it was raised."""


def register(app: typer.Typer) -> None:
    app.command()(score)


def score(
    dataset: Annotated[str, typer.Argument(help="Name of the dataset.")],
    query_id: Annotated[list[int] | None, typer.Option(help="ItemId of a query; may be repeated.")] = None,
    pointer: Annotated[
        list[str] | None, typer.Option(help="ItemIds with commas, e.g. 4,17; '' is zero-shot; may be repeated.")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", help='File of {"query_id": …, "pointers": [[…], …]}: a JSON list, a line each, or a whole request.'
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="With --from: NDJSON file for the scores; default: stdout.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, score nothing.")] = False,
    flavour: Annotated[str, typer.Option(help="official or lever_plus.")] = "official",
    postprocessing: Annotated[
        str, typer.Option(help="How the answer is found in the VLM's text: short-answer, first-line or none.")
    ] = "short-answer",
    strict: Annotated[bool, typer.Option("--strict", help="Refuse queries with fewer than ten annotated answers.")] = False,
    gt_prob: Annotated[bool, typer.Option("--gt-prob", help="How likely the VLM is to give the annotated answers.")] = False,
    info_score: Annotated[
        bool, typer.Option("--info-score", help="What the first demonstration adds to the answer's probability.")
    ] = False,
    as_json: Json = False,
    scorer_url: ScorerUrl = SCORER,
) -> None:
    """Have the VLM answer queries with each of the given demonstrations, and score the answers."""
    from leverplus.client import ScorerClient
    from leverplus.errors import InvalidInput
    from leverplus.scoring import ScoreOptions

    chosen = {"flavour": flavour, "postprocessing": postprocessing, "strict": strict}
    options = validated(ScoreOptions, {**chosen, "gt_prob": gt_prob, "info_score": info_score})
    if source is None:
        if not query_id or not pointer:
            raise InvalidInput("name queries by --query-id and pointers by --pointer, or a file of them by --from")
        if out is not None:
            raise InvalidInput("--out goes with --from; without a file, --json prints what the scorer answers")
        requests = [_one_request(dataset, query_id, pointer, options)]
    else:
        if query_id or pointer:
            raise InvalidInput("--query-id and --pointer stand in the file that --from names: leave them out")
        from leverplus.cli.query_file import QueryFile

        requests = QueryFile(source).requests(dataset, options)
    with ScorerClient(scorer_url.split(",")[0].strip(), key=service_key(), timeout_s=_LONGEST_SILENCE_S) as client:
        if dry_run:
            _show_plans([client.score_plan(request) for request in requests], as_json=as_json)
        elif source is None:
            [request] = requests
            _show(client.score(request), dataset, gt_prob=gt_prob, info_score=info_score, as_json=as_json)
        else:
            _stream(client, source, requests, out)


def _one_request(dataset: str, query_ids: Sequence[int], pointers: Sequence[str], options: Any) -> ScoreRequest:
    from leverplus.scoring import ScoreRequest

    listed = [item_ids(text, "--pointer") for text in pointers]
    queries = [{"query_id": query_id, "pointers": listed} for query_id in query_ids]
    return validated(ScoreRequest, {"dataset": dataset, "queries": queries, "options": options})


def _show(response: ScoreResponse, dataset: str, *, gt_prob: bool, info_score: bool, as_json: bool) -> None:
    from leverplus.cli.output import print_json, print_table

    if as_json:
        print_json(response.model_dump())
        return
    fields = {"pointer": "pointer", "answer": "vqa_pred_answer", "accuracy": "vqa_acc_score", "correct": "vqa_correct"}
    fields |= {"mode": "vqa_eval_mode"} | ({"gt_prob": "vqa_gt_prob"} if gt_prob else {})
    fields |= {"info_score": "info_score"} if info_score else {}
    for result in response.results:
        rows = ([getattr(each, field) for field in fields.values()] for each in result.candidates)
        print_table(f"query {result.query_id} of {dataset}", tuple(fields), rows)
    _warn(response.stats.warnings)


def _stream(client: ScorerClient, source: Path, requests: Iterable[ScoreRequest], out: Path | None) -> None:
    """Writes the lines of the scorer's streams as one stream, and says on stderr how far it is."""
    from contextlib import nullcontext

    from leverplus.cli.job_progress import ProgressDisplay
    from leverplus.cli.query_file import QueryFile
    from leverplus.files import atomic_file
    from leverplus.fingerprint import Fingerprint
    from leverplus.scoring import ScoreStats, StreamEnd, StreamStart

    total = QueryFile(source).count()
    fingerprint: Fingerprint | None = None
    done = 0
    parts: list[ScoreStats] = []
    target = nullcontext(sys.stdout.buffer) if out is None else atomic_file(out)
    with ProgressDisplay("score", stream=sys.stderr) as display, target as lines:
        for request in requests:
            with client.score_stream(request) as stream:
                found = Fingerprint.from_json(stream.fingerprint)
                if fingerprint is None:
                    fingerprint = found
                    lines.write(StreamStart(fingerprint=stream.fingerprint).model_dump_json().encode() + b"\n")
                fingerprint.require_same(found, subject="the scorer's newest answer")
                for query in stream:
                    lines.write(query.model_dump_json().encode() + b"\n")
                    done += len(query.candidates)
                    display.update("pointers", done, total)
            assert stream.stats is not None, "the stream was read to its end"
            parts.append(stream.stats)
        stats = ScoreStats.total(parts)
        lines.write(StreamEnd(stats=stats).model_dump_json().encode() + b"\n")
        display.done(_counted(stats, done))
    _warn(stats.warnings)


def _counted(stats: Any, done: int) -> str:
    shares = ", ".join(f"{name} {getattr(stats, name)} ({share:.1%})" for name, share in stats.share.items() if share is not None)
    return f"{done} pointers: {shares}"


def _warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _show_plans(plans: Sequence[ScorePlanResponse], *, as_json: bool) -> None:
    """Sums over requests; the images of one may be another's too, so that of several there are at most so many."""
    from leverplus.cli.output import print_json, print_table

    names = ("queries", "pointers", "committed", "to_score", "images", "images_to_score")
    totals: dict[str, Any] = {name: sum(getattr(plan, name) for plan in plans) for name in names}
    rate = plans[-1].pointers_per_engine_s
    totals |= {"pointers_per_engine_s": rate, "estimated_s": totals["to_score"] / rate if rate else None}
    if as_json:
        print_json({"fingerprint": plans[0].fingerprint, **totals})
        return
    at_most = "" if len(plans) == 1 else "at most "
    unknown = "unknown: this scorer has measured no rate yet"
    rows = [
        ("queries", totals["queries"]),
        ("pointers", totals["pointers"]),
        ("committed", totals["committed"]),
        ("to score", totals["to_score"]),
        ("distinct images", f"{at_most}{totals['images']}, {totals['images_to_score']} of them to score"),
        ("measured rate", unknown if rate is None else f"{rate:.1f} pointers/s while the engine works"),
        ("estimated time", unknown if rate is None else _duration(totals["estimated_s"])),
    ]
    print_table(None, ("what", "found"), rows)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
