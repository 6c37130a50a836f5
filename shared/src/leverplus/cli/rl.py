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
def convert(source: Source, target: Target, dataset: OfDataset = None, data: Data = DEFAULT_DATA) -> None:
    """Read a file in any dialect, check it, and write it in ours."""
    from leverplus.rl_data import read, write

    found = read(source, open_dataset(data, dataset) if dataset is not None else None)
    write(target, found.records, fingerprint=found.fingerprint, meta=found.meta)
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

    merged = merge_files([(str(path), read(path)) for path in sources])
    write(target, merged.records, fingerprint=merged.fingerprint, meta=merged.meta)
    print(f"{target}: {_counted(merged.records)}")


@app.command()
def generate(
    dataset: Annotated[str, typer.Argument(help="Name of the dataset.")],
    split: Annotated[str, typer.Option(help="Split of the queries.")] = "train",
    queries: Annotated[int | None, typer.Option(min=1, help="So many queries; default: all of the split.")] = None,
    shots: Annotated[list[int] | None, typer.Option(min=1, max=4, help="May be repeated; default 2.")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Selector that proposes; default: a fresh one.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    dry_run: Annotated[bool, typer.Option(help="Count the pointers, score none.")] = False,
    wait: Wait = True,
    trainer_url: TrainerUrl = TRAINER,
) -> None:
    """Make candidate pointers and have them scored."""
    from leverplus.cli.services import finish_job
    from leverplus.client import TrainerClient

    body: dict[str, Any] = {"dataset": dataset, "split": split, "queries": queries, "shots": shots or [2]}
    body |= {"checkpoint": checkpoint, "seed": seed, "dry_run": dry_run}
    with TrainerClient(trainer_url) as client:
        finish_job(client, client.generate(body), "generate", wait=wait)


@app.command()
def upload(
    source: Source, dataset: Annotated[str, typer.Option(help="The dataset its ids are of.")], trainer_url: TrainerUrl = TRAINER
) -> None:
    """Give a file to the trainer; prints the id to train on."""
    from leverplus.cli.output import print_json
    from leverplus.client import TrainerClient
    from leverplus.errors import NotFound

    if not source.is_file():
        raise NotFound(what="file", name=str(source), hint="name an RL JSON or NDJSON file")
    with TrainerClient(trainer_url, timeout_s=600.0) as client:
        print_json(client.upload_rl_data(source, dataset))


def _counted(records: list[Any]) -> str:
    return f"{len(records)} queries, {sum(len(record.candidates) for record in records)} candidates"


def _readable(value: Any) -> str:
    import orjson

    return value if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()
