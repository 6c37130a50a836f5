"""Commands on RL data: inspect, convert, filter, merge on files; generate and upload through the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from leverplus.cli.options import DEFAULT_DATA, TRAINER, Data, Json, TrainerUrl, Wait, open_dataset

app = typer.Typer(help="RL data: scored pointers.", no_args_is_help=True)

Source = Annotated[Path, typer.Argument(help="RL JSON or NDJSON, in any dialect.")]
Target = Annotated[Path, typer.Argument(help="File to write; NDJSON if its name ends in .ndjson or .jsonl.")]
OfDataset = Annotated[str | None, typer.Option("--dataset", help="Check the ids against this dataset.")]


@app.command("inspect")
def inspect_command(source: Source, as_json: Json = False) -> None:
    """What a file holds: queries, candidates, how they were scored, duplicates, fingerprints."""
    from leverplus.cli.output import print_json, print_table
    from leverplus.rl_data import inspect

    report = inspect(source)
    if as_json:
        print_json(report)
    else:
        print_table(str(source), ("what", "found"), ((name, _readable(value)) for name, value in report.items()))


@app.command()
def convert(
    source: Source,
    target: Target,
    dataset: OfDataset = None,
    drop_invalid: Annotated[
        bool, typer.Option("--drop-invalid", help="Leave out what is invalid and count it, instead of refusing the file.")
    ] = False,
    info_score: Annotated[
        str | None, typer.Option("--info-score", help="For a legacy InfoScore file, which scores are better: higher or lower.")
    ] = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Read a file in any dialect, check it, and write it in ours; with --dataset it then says which dataset it is of."""
    from dataclasses import replace

    from leverplus.errors import InvalidConfig
    from leverplus.rl_data import read, read_dropping_invalid, write

    if info_score not in ("higher", "lower", None):
        raise InvalidConfig(field="--info-score", reason=f"{info_score!r}, expected higher or lower")
    if drop_invalid and info_score is not None:
        raise InvalidConfig(field="--drop-invalid", reason=f"does not go with --info-score {info_score}; leave it out")
    _require_folder(target)
    opened = open_dataset(data, dataset) if dataset is not None else None
    if drop_invalid:
        found, dropped = read_dropping_invalid(source, opened)
        print(f"dropped: {dropped.queries} queries, {dropped.candidates} candidates")
        for reason, count in dropped.reasons.most_common():
            print(f"  {count} × {reason}")
    else:
        found = read(source, opened, info_score=info_score)
    fingerprint = found.fingerprint if opened is None else replace(found.fingerprint, dataset=opened.fingerprint())
    write(target, found.records, fingerprint=fingerprint, meta=found.meta)
    print(f"{target}: {_counted(found.records)}")


@app.command("filter")
def filter_command(
    source: Source,
    target: Target,
    eval_mode: Annotated[list[str] | None, typer.Option(help="Keep candidates of this mode; may be repeated.")] = None,
    gen_method: Annotated[list[str] | None, typer.Option(help="Keep candidates made this way; may be repeated.")] = None,
    shots: Annotated[list[int] | None, typer.Option(min=0, max=4, help="Keep so many shots; may be repeated.")] = None,
    drop_flat: Annotated[bool, typer.Option(help="Drop queries whose candidates all score the same.")] = False,
) -> None:
    """Keep the candidates that meet every condition, and the queries that still have one."""
    from leverplus.errors import InvalidInput
    from leverplus.rl_data import read, write
    from leverplus.rl_data.filtering import filter_records

    _require_folder(target)
    found = read(source)
    kept = filter_records(found.records, eval_modes=eval_mode, gen_methods=gen_method, shots=shots, drop_flat=drop_flat)
    if not kept:
        raise InvalidInput(f"{source}: no candidate meets the conditions; nothing was written")
    write(target, kept, fingerprint=found.fingerprint, meta=found.meta)
    print(f"{target}: {_counted(kept)} of {_counted(found.records)}")


@app.command()
def merge(target: Target, sources: Annotated[list[Path], typer.Argument(help="Files made under the same fingerprint.")]) -> None:
    """Put files together. Refused across fingerprints, pools of one query that differ, or scores that contradict each other."""
    from leverplus.rl_data import read, write
    from leverplus.rl_data.filtering import merge_files

    _require_folder(target)
    merged = merge_files([(str(path), read(path)) for path in sources])
    write(target, merged.records, fingerprint=merged.fingerprint, meta=merged.meta)
    print(f"{target}: {_counted(merged.records)}")


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
    sampler: Annotated[str | None, typer.Option(help="How each query's pool is made; default random.")] = None,
    k: Annotated[int | None, typer.Option("-k", "--k", min=1, help="Ids in a pool; default 64.")] = None,
    pool_seed: Annotated[int | None, typer.Option(min=0, help="Seed of the pools; default 0.")] = None,
    candidate_split: Annotated[str | None, typer.Option(help="Where demonstrations come from; default train.")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Selector that proposes; default: a fresh one.")] = None,
    gt_prob: Annotated[bool, typer.Option("--gt-prob", help="Fill vqa_gt_prob, for rewards that are made of it.")] = False,
    info_score: Annotated[bool, typer.Option("--info-score", help="Fill info_score, for reward mode hybrid.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of queries and pointers.")] = 0,
    dry_run: Annotated[bool, typer.Option(help="Count the pointers, score none.")] = False,
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
    chosen |= {"gt_prob": gt_prob or None, "info_score": info_score or None}
    body |= _stated(chosen) | {"pool": _stated(pool)}
    with TrainerClient(trainer_url) as client:
        finish_job(client, client.generate(body), "generate", wait=wait, as_json=as_json, show=show_made)


@app.command()
def upload(
    source: Source,
    dataset: Annotated[str, typer.Option(help="The dataset its ids are of.")],
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
    with TrainerClient(trainer_url, timeout_s=600.0) as client:
        uploaded = client.upload_rl_data(source, dataset)
    if as_json:
        print_json(uploaded)
    else:
        show_made(uploaded)


def _require_folder(target: Path) -> None:
    from leverplus.errors import NotFound

    if not target.parent.is_dir():
        raise NotFound(what="folder", name=str(target.parent), hint="make it first, or name another file to write")


def _stated(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _counted(records: list[Any]) -> str:
    return f"{len(records)} queries, {sum(len(record.candidates) for record in records)} candidates"


def _readable(value: Any) -> str:
    import orjson

    return value if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()
