"""Commands that ask the running services: train, sweep, select."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from leverplus.cli.jobs import finish_job, show_made
from leverplus.cli.options import SELECTOR, TRAINER, Json, SelectorUrl, TrainerUrl, Wait, item_ids, service_key


def register(app: typer.Typer) -> None:
    for command in (train, sweep, select):
        app.command()(command)


def train(
    rl_data: Annotated[list[str], typer.Argument(help="Ids of RL data (`leverplus rl generate` or `rl upload`).")],
    config: Annotated[Path | None, typer.Option(help="TOML file of the training configuration.")] = None,
    assignments: Annotated[list[str] | None, typer.Option("--set", help="FIELD=VALUE in TOML, above the file.")] = None,
    wait: Wait = True,
    as_json: Json = False,
    trainer_url: TrainerUrl = TRAINER,
) -> None:
    """Train a selector on RL data."""
    from leverplus.client import TrainerClient

    chosen = _merged(_toml_file(config) if config is not None else {}, _assigned(assignments or []))
    with TrainerClient(trainer_url, key=service_key()) as client:
        finish_job(client, client.train(rl_data, chosen), "train", wait=wait, as_json=as_json, show=show_made)


def sweep(
    config: Annotated[Path, typer.Argument(help="TOML file: [base.config] as for train, and [axes] of values.")],
    rl_data: Annotated[
        list[str] | None, typer.Option(help="Id of RL data, in place of those that the file names; may be repeated.")
    ] = None,
    wait: Wait = True,
    as_json: Json = False,
    trainer_url: TrainerUrl = TRAINER,
) -> None:
    """Train a selector for every combination of values, and compare them in a table."""
    from leverplus.client import TrainerClient
    from leverplus.errors import InvalidInput

    body = _toml_file(config, "CONFIG")
    if rl_data:
        body = _merged(body, {"base": {"rl_data": rl_data}})
    elif not isinstance(base := body.get("base", {}), dict) or not base.get("rl_data"):
        raise InvalidInput(f"{config} names no rl_data under [base]: name some with --rl-data")
    with TrainerClient(trainer_url, key=service_key()) as client:
        finish_job(client, client.sweep(body), "sweep", wait=wait, as_json=as_json, show=_show_sweep)


def _show_sweep(result: Mapping[str, Any]) -> None:
    from leverplus.cli.output import print_table

    measured = ("held_out_expected_accuracy", "held_out_expected_reward", "held_out_rce")
    columns = (*result["names"], "accuracy", "reward", "RCE", "epoch", "checkpoint", "state")
    rows: list[list[object]] = []
    for row in result["rows"]:
        values = [row["values"][name] for name in result["names"]]
        numbers = [None if row[name] is None else f"{row[name]:.4f}" for name in measured]
        rows.append([*values, *numbers, row["epoch"], row["checkpoint_id"], row["state"]])
    print_table("Held out, the best first", columns, rows)
    told: dict[tuple[str, str], list[str]] = {}
    for row in result["rows"]:
        if row["reason"]:
            told.setdefault((row["state"], row["reason"]), []).append(row["job_id"] or f"child {row['number']}")
    for (state, reason), named in told.items():
        print(f"{', '.join(named)} {state}: {reason}")
    for note in result["notes"]:
        print(note)


def select(
    query_id: Annotated[int | None, typer.Option(help="ItemId of the query.")] = None,
    question_id: Annotated[str | None, typer.Option(help="The dataset's own id of the query.")] = None,
    shots: Annotated[int | None, typer.Option(min=0, max=4)] = None,
    policy: Annotated[str | None, typer.Option(help="v3, random, similar_image, …")] = None,
    beam: Annotated[int | None, typer.Option(min=1)] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="ItemIds that are not to be chosen, with commas, e.g. 4,17; may be repeated.")
    ] = None,
    prefilter: Annotated[
        str | None, typer.Option(help="An index of the checkpoint (`leverplus index`): only what it hands on is ranked.")
    ] = None,
    dataset: Annotated[str | None, typer.Option()] = None,
    checkpoint: Annotated[str | None, typer.Option(help="A checkpoint instead of an alias.")] = None,
    alias: Annotated[str | None, typer.Option(help="Default: production.")] = None,
    selector_url: SelectorUrl = SELECTOR,
) -> None:
    """The demonstrations that the promoted selector chooses for a query."""
    from leverplus.cli.output import print_json
    from leverplus.errors import InvalidInput
    from leverplus.selector_client import SelectorClient

    if (query_id is None) == (question_id is None):
        raise InvalidInput("name the query by --query-id or by --question-id")
    given: dict[str, Any] = {"query_id": query_id, "question_id": question_id, "shots": shots, "policy": policy, "beam": beam}
    given |= {"dataset": dataset, "checkpoint": checkpoint, "alias": alias, "prefilter": prefilter}
    given |= {"exclude": [item_id for text in exclude or [] for item_id in item_ids(text, "--exclude")] or None}
    with SelectorClient(selector_url, key=service_key()) as client:
        print_json(client.select(**{name: value for name, value in given.items() if value is not None}))


def validated(model: Any, value: Mapping[str, Any]) -> Any:
    """`value` as a pydantic model, or InvalidInput naming the first fault."""
    from pydantic import ValidationError

    from leverplus.errors import InvalidInput

    try:
        return model.model_validate(value)
    except ValidationError as exc:
        fault = exc.errors(include_url=False)[0]
        raise InvalidInput(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}, found {fault['input']!r}") from exc


def _toml_file(path: Path, named: str = "--config") -> dict[str, Any]:
    import tomllib

    from leverplus.errors import InvalidConfig

    try:
        return tomllib.loads(path.read_text())
    except OSError as exc:
        raise InvalidConfig(field=named, reason=f"{path}: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise InvalidConfig(field=str(path), reason=f"not TOML: {exc}") from exc


def _assigned(assignments: list[str]) -> dict[str, Any]:
    import tomllib

    from leverplus.errors import InvalidConfig

    chosen: dict[str, Any] = {}
    for assignment in assignments:
        name, mark, value = assignment.partition("=")
        if not (name.strip() and mark):
            raise InvalidConfig(field="--set", reason=f"{assignment!r}: write FIELD=VALUE")
        for text in (assignment, f'{name} = "{value}"'):  # a bare word is text
            try:
                chosen = _merged(chosen, tomllib.loads(text))
                break
            except tomllib.TOMLDecodeError:
                continue
        else:
            raise InvalidConfig(field="--set", reason=f"{assignment!r}: write FIELD=VALUE")
    return chosen


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, tables into tables."""
    merged = dict(below)
    for name, value in above.items():
        under = merged.get(name)
        merged[name] = _merged(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return merged
