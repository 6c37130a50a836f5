"""Commands that start the services: up, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leverplus.cli.options import (
    DEFAULT_DATA,
    Data,
    Device,
    Dtype,
    Lora,
    ScorerPort,
    Scorers,
    SelectorPort,
    TrainerPort,
    Vlm,
    data_root,
    database_url,
    model_directory,
    redis_url,
    require_scorer_key,
    scorer_count,
    scoring_model,
)


def register(app: typer.Typer) -> None:
    app.command()(up)
    app.command()(demo)


def up(
    data: Data = DEFAULT_DATA,
    vlm: Vlm = None,
    lora: Lora = None,
    host: Annotated[str, typer.Option(envvar="LEVERPLUS_HOST", help="Where the services listen.")] = "127.0.0.1",
    scorer_port: ScorerPort = 8001,
    trainer_port: TrainerPort = 8002,
    selector_port: SelectorPort = 8003,
    scorers: Scorers = "1",
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Annotated[int, typer.Option(min=1, envvar="LEVERPLUS_THREADS", help="torch threads of a process.")] = 1,
) -> None:
    """Start the broker (unless REDIS_URL is set), the three services and a worker, again where one ends; ^C stops them."""
    from leverplus.launcher import Ports, Stack, StackConfig, StoppedBySignal, scorer_devices, stop_on_signals

    require_scorer_key()
    devices = scorer_devices(device, scorer_count(scorers))
    config = StackConfig(
        data=data_root(data).path,
        vlm=scoring_model(vlm),
        lora=lora,
        ports=Ports(scorer_port, trainer_port, selector_port).for_scorers(len(devices)),
        host=host,
        redis_url=redis_url(),
        database_url=database_url(),
        devices=devices,
        dtype=dtype,
        threads=threads,
    )
    try:
        with stop_on_signals(), Stack.start(config, report=_say) as stack:
            if exports := config.exports():
                print("for commands in another shell:", *exports, sep="\n  ")
            print(f"data in {config.data}; logs in {config.data / 'logs'}; ^C stops everything", flush=True)
            stack.keep_running(_say)
    except StoppedBySignal as stopped:
        raise typer.Exit(stopped.exit_code) from None


def demo(
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of the demo; default: .leverplus/demo, demo-quick or demo-full.")
    ] = None,
    vlm: Vlm = None,
    full: Annotated[bool, typer.Option("--full", help="0 to 4 shots instead of 0 to 2.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A smaller cut, for a first look and for CI.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the dataset, where the folder holds none yet.")] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the services running at the end, until ^C.")] = False,
    threads: Annotated[int, typer.Option(min=1, envvar="LEVERPLUS_THREADS", help="torch threads of a process.")] = 1,
) -> None:
    """The whole main job on generated data: embed, generate, score, train, evaluate, promote, select."""
    from leverplus.demo import DemoConfig, run_demo
    from leverplus.errors import InvalidInput
    from leverplus.launcher import StoppedBySignal, stop_on_signals

    if full and quick:
        raise InvalidInput("--full and --quick contradict each other: choose one")
    size = "full" if full else "quick" if quick else "standard"
    # A folder for each size: a quick look must not delete what a longer run has made.
    folder = data or DEFAULT_DATA / ("demo" if size == "standard" else f"demo-{size}")
    config = DemoConfig(
        data=data_root(folder).path,
        vlm=model_directory(vlm),
        size=size,
        seed=seed,
        keep=keep,
        redis_url=redis_url(),
        threads=threads,
    )
    try:
        with stop_on_signals():
            run_demo(config)
    except StoppedBySignal as stopped:
        raise typer.Exit(stopped.exit_code) from None


def _say(line: str) -> None:
    print(line, flush=True)
