"""Commands on RL data: inspect, convert, filter, merge on files; generate and upload through the trainer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from leverplus.cli.options import (
    DEFAULT_DATA,
    TRAINER,
    Data,
    Json,
    TrainerUrl,
    Wait,
    open_dataset,
    require_folder,
    service_key,
)

if TYPE_CHECKING:
    from leverplus.fingerprint import Fingerprint
    from leverplus.rl_data import Dropped, InfoScoreSign, QueryRecord

app = typer.Typer(help="RL data: scored pointers.", no_args_is_help=True)

Source = Annotated[Path, typer.Argument(help="RL JSON or NDJSON, in any dialect.")]
Target = Annotated[Path, typer.Argument(help="File to write; NDJSON if its name ends in .ndjson or .jsonl.")]
OfLegacy = Annotated[
    str | None,
    typer.Option(
        metavar="higher|lower",
        help="For a legacy InfoScore file, which scores are better: higher or lower, which are negated.",
    ),
]
OfDataset = Annotated[str | None, typer.Option("--dataset", help="Check the ids against this dataset.")]


@app.command("inspect")
def inspect_command(
    source: Source,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw rewards, positives a query, shots and modes.")
    ] = None,
    reward: Annotated[str, typer.Option(metavar="MODE", help="Reward mode that the rewards are of.")] = "hard_plus_soft",
    alpha: Annotated[float, typer.Option(help="Weight of InfoScore (hybrid) or quality (legacy).")] = 0.0,
    beta: Annotated[float, typer.Option(help="Weight of correctness (legacy).")] = 0.0,
    as_json: Json = False,
) -> None:
    """What a file holds: positives, rewards, how candidates were scored, pools, duplicates, shots, fingerprints."""
    from leverplus.cli.output import print_json, print_table
    from leverplus.rewards import RewardConfig
    from leverplus.rl_data import inspect

    if plot is not None:
        require_folder(plot)
    report = inspect(source, RewardConfig(mode=cast(Any, reward), alpha=alpha, beta=beta))
    if plot is not None:
        from leverplus.rl_data.plot import plot_report

        plot_report(report, plot)
    if as_json:
        print_json(report)
        return
    by_shots: dict[str, dict[str, Any]] = report["by_shots"]
    shown = {name: value for name, value in report.items() if name not in ("by_shots", "warnings")}
    shown["rewards"] = {name: value for name, value in report["rewards"].items() if name != "histogram"}
    print_table(str(source), ("what", "found"), ((name, _readable(value)) for name, value in shown.items()))
    if by_shots:
        names = list(next(iter(by_shots.values())))
        rows = ((name, *(_readable(group[name]) for group in by_shots.values())) for name in names)
        print_table("by number of shots", ("shots", *by_shots), rows)
    for warning in report["warnings"]:
        print(f"warning: {warning}")


@app.command()
def convert(
    source: Source,
    target: Target,
    dataset: OfDataset = None,
    drop_invalid: Annotated[
        bool, typer.Option("--drop-invalid", help="Leave out what is invalid and count it, instead of refusing the file.")
    ] = False,
    info_score: OfLegacy = None,
    as_json: Json = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Read a file in any dialect, check it, and write it in ours; with --dataset it then says which dataset it is of."""
    from dataclasses import replace

    from leverplus.rl_data import Dropped, stream, stream_dropping_invalid

    require_folder(target)
    sign = _sign(info_score)
    opened = open_dataset(data, dataset) if dataset is not None else None
    if drop_invalid:
        found, dropped = stream_dropping_invalid(source, opened, info_score=sign)
    else:
        found, dropped = stream(source, opened, info_score=sign), Dropped()
    fingerprint = found.fingerprint if opened is None else replace(found.fingerprint, dataset=opened.fingerprint())
    _write(target, found.records, fingerprint, found.meta, dropped, as_json=as_json)


@app.command("filter")
def filter_command(
    source: Source,
    target: Target,
    eval_mode: Annotated[list[str] | None, typer.Option(help="Keep candidates of this mode; may be repeated.")] = None,
    gen_method: Annotated[list[str] | None, typer.Option(help="Keep candidates made this way; may be repeated.")] = None,
    shots: Annotated[list[int] | None, typer.Option(min=0, max=4, help="Keep so many shots; may be repeated.")] = None,
    no_fallback: Annotated[bool, typer.Option("--no-fallback", help="Drop candidates that the fallback scored.")] = False,
    has_positive: Annotated[
        bool, typer.Option("--has-positive", help="Drop groups (query, number of shots) without a vqa_correct of 1.")
    ] = False,
    balanced: Annotated[
        str | None, typer.Option(metavar="LOW-HIGH", help="Drop groups whose share of positives is outside, e.g. 0.4-0.6.")
    ] = None,
    down_sample: Annotated[
        bool, typer.Option("--down-sample", help="Bring groups within --balanced by leaving out as few candidates as possible.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Which ones --down-sample leaves out.")] = 0,
    drop_flat: Annotated[bool, typer.Option("--drop-flat", help="Drop queries whose candidates all score the same.")] = False,
    as_json: Json = False,
) -> None:
    """Keep the candidates that meet every condition, and the queries that still have one; count the others by reason."""
    from leverplus.errors import InvalidInput
    from leverplus.rl_data import Dropped, Filter, filter_records, stream

    require_folder(target)
    bounds = None if balanced is None else _bounds(balanced)
    conditions = Filter(eval_mode, gen_method, shots, no_fallback, has_positive, bounds, down_sample, seed, drop_flat)
    found, dropped = stream(source), Dropped()
    meta = {**found.meta, "filtered": [*found.meta.get("filtered", []), conditions.to_json()]}
    kept = filter_records(found.records, conditions, dropped)
    if (first := next(kept, None)) is None:
        raise InvalidInput(f"{source}: no candidate meets the conditions; nothing was written ({dropped.to_json()['reasons']})")
    _write(target, chain([first], kept), found.fingerprint, meta, dropped, as_json=as_json)


@app.command()
def merge(
    target: Target,
    sources: Annotated[list[Path], typer.Argument(help="Files made under the same fingerprint.")],
    as_json: Json = False,
) -> None:
    """Put files together. Refused across fingerprints, pools of one query that differ, or scores that contradict each other."""
    from leverplus.rl_data import Dropped, merge_files

    require_folder(target)
    merged = merge_files(sources)
    _write(target, merged.records, merged.fingerprint, merged.meta, Dropped(), as_json=as_json)


@app.command()
def generate(
    dataset: Annotated[str, typer.Argument(help="Name of the dataset.")],
    split: Annotated[str, typer.Option(help="Split of the queries.")] = "train",
    queries: Annotated[int | None, typer.Option(min=1, help="So many queries; default: all of the split.")] = None,
    shots: Annotated[list[int] | None, typer.Option(min=1, max=4, help="May be repeated; default 2.")] = None,
    num_beams: Annotated[int | None, typer.Option(min=0, help="Pointers by beam search; default 5.")] = None,
    temps: Annotated[
        list[float] | None, typer.Option("--temp", help="Temperature to sample at; may be repeated; default 1.0 and 1.3.")
    ] = None,
    num_samples_per_temp: Annotated[int | None, typer.Option(min=0, help="Sampled pointers a temperature; default 2.")] = None,
    num_random: Annotated[int | None, typer.Option(min=0, help="Pointers drawn uniformly; default 1.")] = None,
    num_retrieval: Annotated[int | None, typer.Option(min=0, help="Pointers of the most similar; default 5.")] = None,
    num_answer: Annotated[int | None, typer.Option(min=0, help="Pointers whose answers hold the query's own; default 0.")] = None,
    zero_shot: Annotated[
        bool | None, typer.Option("--zero-shot/--no-zero-shot", help="The empty pointer as well, a baseline; default yes.")
    ] = None,
    logging_draws: Annotated[
        int | None,
        typer.Option(min=1, help="Independent draws of a stated mixture, the only ones with a propensity."),
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Share of uniform logging draws; default 0.2 with a checkpoint, 1 without.")
    ] = None,
    logging_temps: Annotated[
        list[float] | None, typer.Option("--logging-temp", help="Temperature of the others; may be repeated; default 1.0.")
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="How each query's pool is made; default random.")] = None,
    k: Annotated[int | None, typer.Option("-k", "--k", min=1, help="Ids in a pool; default 64.")] = None,
    pool_seed: Annotated[int | None, typer.Option(min=0, help="Seed of the pools; default 0.")] = None,
    candidate_split: Annotated[str | None, typer.Option(help="Where demonstrations come from; default train.")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Selector that proposes; default: a fresh one.")] = None,
    gt_prob: Annotated[bool, typer.Option("--gt-prob", help="Fill vqa_gt_prob, for rewards that are made of it.")] = False,
    info_score: Annotated[bool, typer.Option("--info-score", help="Fill info_score, for reward mode hybrid.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of queries and pointers.")] = 0,
    shard_queries: Annotated[int | None, typer.Option(min=1, help="Queries that a worker takes at a time; default 500.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Count pointers, images and hours, score none.")] = False,
    wait: Wait = True,
    as_json: Json = False,
    trainer_url: TrainerUrl = TRAINER,
) -> None:
    """Make candidate pointers and have them scored; what is not stated has the service's default."""
    from leverplus.cli.jobs import finish_job, show_made
    from leverplus.client import TrainerClient

    body: dict[str, Any] = {"dataset": dataset, "split": split, "queries": queries, "shots": shots or [2]}
    body |= {"checkpoint": checkpoint, "seed": seed, "dry_run": dry_run}
    chosen = {"num_beams": num_beams, "num_samples_per_temp": num_samples_per_temp, "temps": temps or None}
    chosen |= {"num_random": num_random, "num_retrieval": num_retrieval, "num_answer": num_answer, "zero_shot": zero_shot}
    pool = {"sampler": sampler, "k": k, "seed": pool_seed, "candidate_split": candidate_split}
    chosen |= {"gt_prob": gt_prob or None, "info_score": info_score or None, "shard_queries": shard_queries}
    chosen |= {"logging": _logging(logging_draws, epsilon, logging_temps)}
    body |= _stated(chosen) | {"pool": _stated(pool)}
    with TrainerClient(trainer_url, key=service_key()) as client:
        finish_job(client, client.generate(body), "generate", wait=wait, as_json=as_json, show=show_made)


@app.command()
def upload(
    source: Source,
    dataset: Annotated[str, typer.Option(help="The dataset its ids are of.")],
    info_score: OfLegacy = None,
    as_json: Json = False,
    trainer_url: TrainerUrl = TRAINER,
) -> None:
    """Give a file to the trainer; prints the id to train on."""
    from leverplus.cli.jobs import show_made
    from leverplus.cli.output import print_json
    from leverplus.client import TrainerClient
    from leverplus.errors import NotFound

    if not source.is_file():
        raise NotFound(what="file", name=str(source), hint="name an RL JSON or NDJSON file")
    sign = _sign(info_score)
    with TrainerClient(trainer_url, key=service_key(), timeout_s=600.0) as client:
        uploaded = client.upload_rl_data(source, dataset, info_score=sign)
    if as_json:
        print_json(uploaded)
    else:
        show_made(uploaded)


def _logging(draws: int | None, epsilon: float | None, temperatures: list[float] | None) -> dict[str, Any] | None:
    from leverplus.errors import InvalidConfig

    shape = _stated({"epsilon": epsilon, "temperatures": temperatures or None})
    if draws is None and shape:
        raise InvalidConfig(field="--logging-draws", reason=f"is missing, but {', '.join(shape)} of the logging draws is stated")
    return None if draws is None else {"draws": draws, **shape}


def _sign(text: str | None) -> InfoScoreSign | None:
    from leverplus.errors import InvalidConfig

    if text not in (None, "higher", "lower"):
        raise InvalidConfig(field="--info-score", reason=f"is {text!r}, expected higher or lower")
    return text


def _bounds(text: str) -> tuple[float, float]:
    from leverplus.errors import InvalidConfig

    try:
        low, high = map(float, text.split("-"))
    except ValueError:
        raise InvalidConfig(field="--balanced", reason=f"is {text!r}, expected LOW-HIGH, e.g. 0.4-0.6") from None
    return low, high


def _write(
    target: Path,
    records: Iterable[QueryRecord],
    fingerprint: Fingerprint,
    meta: Mapping[str, Any],
    dropped: Dropped,
    *,
    as_json: bool,
) -> None:
    """Writes the records and tells how many there were, and what was left out."""
    from leverplus.cli.output import print_json
    from leverplus.rl_data import write

    counts = {"queries": 0, "candidates": 0}

    def counted() -> Iterator[QueryRecord]:
        for record in records:
            counts["queries"] += 1
            counts["candidates"] += len(record.candidates)
            yield record

    write(target, counted(), fingerprint=fingerprint, meta=meta)
    if as_json:
        print_json({"file": str(target), **counts, "dropped": dropped.to_json()})
        return
    print(f"{target}: {counts['queries']} queries, {counts['candidates']} candidates")
    if dropped.reasons:
        print(f"dropped: {dropped.queries} queries, {dropped.candidates} candidates")
    for reason, count in dropped.reasons.most_common():
        print(f"  {count} × {reason}")


def _stated(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _readable(value: Any) -> str:
    import orjson

    return value if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()
