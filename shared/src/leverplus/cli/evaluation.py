"""Commands that judge, and have what was judged served: evaluate, headroom, estimate, promote, rollback."""

from __future__ import annotations

import getpass
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from leverplus.cli.jobs import finish_job
from leverplus.cli.options import TRAINER, Json, TrainerUrl, Wait, service_key

By = Annotated[str | None, typer.Option(help="Who; default: the user's name here.")]


def register(app: typer.Typer) -> None:
    for command in (evaluate, headroom, estimate, promote, rollback):
        app.command()(command)


def evaluate(
    dataset: Annotated[str, typer.Argument(help="Name of the dataset.")],
    checkpoint: Annotated[list[str] | None, typer.Option(help="Checkpoint to evaluate; may be repeated.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the queries; default: val, with --final test.")] = None,
    final: Annotated[bool, typer.Option("--final", help="Open the test split; that you did is recorded.")] = False,
    by: Annotated[str | None, typer.Option(help="Who opens it; default: the user's name here.")] = None,
    queries: Annotated[int | None, typer.Option(min=1, help="So many queries; default: all of the split.")] = None,
    shots: Annotated[list[int] | None, typer.Option(help="Numbers of shots; may be repeated; default 0 to 4.")] = None,
    draws: Annotated[int | None, typer.Option(min=1, help="Random pointers a query; default 5.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    wait: Wait = True,
    as_json: Json = False,
    trainer_url: TrainerUrl = TRAINER,
) -> None:
    """Compare zero-shot, random, best fixed, most-similar and learned demonstrations on the same queries."""
    from leverplus.client import TrainerClient

    body: dict[str, Any] = {"dataset": dataset, "queries": queries, "checkpoints": checkpoint or [], "seed": seed}
    body |= {"shots": shots} if shots else {}
    body |= {"draws": draws} if draws else {}
    if final:
        body["final"] = {"by": by or getpass.getuser()}
    with TrainerClient(trainer_url, key=service_key()) as client:
        body["split"] = split or _evaluated_split(client, dataset, "test" if final else "val")
        finish_job(client, client.evaluate(body), "evaluate", wait=wait, as_json=as_json, show=_show_evaluation)


def _evaluated_split(client: Any, dataset: str, wanted: str) -> str:
    from leverplus.errors import InvalidInput, NotFound

    splits = next((list(info["splits"]) for info in client.datasets() if info["name"] == dataset), None)
    if splits is None:
        raise NotFound(what="dataset", name=dataset, hint="`leverplus import` makes one")
    if wanted not in splits:
        raise InvalidInput(f"dataset {dataset!r} has no {wanted} split but {', '.join(splits)}: name one with --split")
    return wanted


def _show_evaluation(result: Mapping[str, Any]) -> None:
    from leverplus.cli.evaluation_tables import print_evaluation_tables

    print_evaluation_tables(result)
    # How the numbers came about, and warnings: what stands above the tables of the report.
    print(result["markdown"].partition("\n|")[0].strip())
    print(f"report: {result['run_folder']}/evaluation.html")


def headroom(
    rl_data: Annotated[str, typer.Argument(help="Id of scored RL data.")],
    queries: Annotated[int | None, typer.Option(min=2, help="So many of its queries; default 400.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    wait: Wait = True,
    as_json: Json = False,
    trainer_url: TrainerUrl = TRAINER,
) -> None:
    """What choosing could gain on these data, before any training, and how many queries it takes to see it."""
    from leverplus.client import TrainerClient

    body = {"rl_data": rl_data, "seed": seed} | ({"queries": queries} if queries else {})
    with TrainerClient(trainer_url, key=service_key()) as client:
        finish_job(client, client.headroom(body), "headroom", wait=wait, as_json=as_json, show=_show_report)


def estimate(
    rl_data: Annotated[str, typer.Argument(help="Id of RL data with logging draws (`rl generate --logging-draws`).")],
    checkpoint: Annotated[str, typer.Option(help="Checkpoint whose selector is asked about.")],
    temperature: Annotated[
        float | None,
        typer.Option(min=0.01, help="Of the softmax over its logits; default 1.0, served is the limit of 0."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    wait: Wait = True,
    as_json: Json = False,
    trainer_url: TrainerUrl = TRAINER,
) -> None:
    """What a checkpoint would score, from draws whose propensities are known: no VLM call."""
    from leverplus.client import TrainerClient

    body: dict[str, Any] = {"rl_data": rl_data, "checkpoint": checkpoint, "seed": seed}
    body |= {"temperature": temperature} if temperature else {}
    with TrainerClient(trainer_url, key=service_key()) as client:
        finish_job(client, client.estimate(body), "estimate", wait=wait, as_json=as_json, show=_show_report)


def _show_report(result: Mapping[str, Any]) -> None:
    print(result["markdown"])


def promote(
    checkpoint: Annotated[str, typer.Argument(help="Id of the checkpoint.")],
    reason: Annotated[str, typer.Option(help="Why; it is recorded in the deployment, and an override needs it.")] = "",
    evaluation: Annotated[str | None, typer.Option(help="Job that evaluated it on val; default: the newest that did.")] = None,
    override: Annotated[bool, typer.Option("--override", help="Do not ask the gate; --reason says why.")] = False,
    alias: Annotated[str, typer.Option(help="What serves it.")] = "production",
    by: By = None,
    as_json: Json = False,
    trainer_url: TrainerUrl = TRAINER,
) -> None:
    """Have an alias serve a checkpoint that passes the gate: better on val than every baseline and than what is served now."""
    from leverplus.cli.output import print_json
    from leverplus.client import TrainerClient
    from leverplus.selector_health import health_warnings

    who = by or getpass.getuser()
    with TrainerClient(trainer_url, key=service_key()) as client:
        deployment = client.promote(checkpoint, alias=alias, by=who, reason=reason, evaluation=evaluation, override=override)
    if as_json:
        print_json(deployment)
        return
    print(f"{alias} serves {checkpoint}; {gate_note(deployment)}")
    for warning in health_warnings(deployment.get("health")):
        print(f"warning: {checkpoint}: {warning}")


def rollback(
    alias: Annotated[str, typer.Argument(help="What is to serve again what it served before.")] = "production",
    by: By = None,
    as_json: Json = False,
    trainer_url: TrainerUrl = TRAINER,
) -> None:
    """Have an alias serve what it served before its last promotion; a second roll-back swaps the two back."""
    from leverplus.cli.output import print_json
    from leverplus.client import TrainerClient

    with TrainerClient(trainer_url, key=service_key()) as client:
        deployment = client.rollback(alias, by=by or getpass.getuser())
    if as_json:
        print_json(deployment)
        return
    print(f"{alias} served {deployment['predecessor']['checkpoint_id']}, and serves {deployment['checkpoint_id']} again")


def gate_note(deployment: Mapping[str, Any]) -> str:
    """What a deployment rests on, in words."""
    gate = deployment.get("gate")
    if gate is None:
        return f"the gate was overridden, reason recorded: {deployment['reason']!r}"
    least = min(gate["comparisons"], key=lambda one: one["low"])
    shots = "1 shot" if least["shots"] == 1 else f"{least['shots']} shots"
    others = "baselines" if gate["incumbent"] is None else f"baselines and {gate['incumbent']}"
    return (
        f"the gate passed it on {gate['queries']} queries against {others}; its smallest lower bound is "
        f"{100 * least['low']:+.1f} points, over {least['baseline']} at {shots}"
    )
