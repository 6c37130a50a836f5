"""`leverplus doctor`: what is installed, how it is set, what it reaches, what lies in the data folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from leverplus.cli.options import (
    DEFAULT_DATA,
    Data,
    Json,
    ScorerPort,
    SelectorPort,
    TrainerPort,
    Vlm,
    database_url,
    redis_url,
    scoring_model,
    shared_url,
)

if TYPE_CHECKING:
    from pathlib import Path

    from leverplus.doctor import Finding


def register(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(
    data: Data = DEFAULT_DATA,
    vlm: Vlm = None,
    scorer_port: ScorerPort = 8001,
    trainer_port: TrainerPort = 8002,
    selector_port: SelectorPort = 8003,
    as_json: Json = False,
) -> None:
    """Check the installation, its settings, what it reaches and the data folder; exit code 1 if something is WRONG."""
    from dataclasses import asdict

    from leverplus.cli.output import print_json, print_table
    from leverplus.doctor import data_findings, installation_findings, reachable_findings, service_findings
    from leverplus.launcher import Ports

    folder = data.resolve()
    ports = Ports(scorer_port, trainer_port, selector_port)
    findings = [
        *installation_findings(os.environ),
        *_settings(vlm),
        *reachable_findings(redis_url=redis_url(), database_url=database_url(), data=folder, ports=ports),
        *service_findings(os.environ, folder),
        *data_findings(folder, shared_url()),
    ]
    is_well = all(finding.state != "WRONG" for finding in findings)
    if as_json:
        print_json({"ok": is_well, "findings": [asdict(finding) for finding in findings]})
    else:
        print_table(None, ("what", "", "found"), ((finding.what, finding.state, finding.found) for finding in findings))
    if not is_well:
        raise typer.Exit(1)


def _settings(vlm: Path | None) -> Iterator[Finding]:
    from leverplus.doctor import Finding, settings_findings
    from leverplus.errors import InvalidConfig

    try:
        model = scoring_model(vlm)
    except InvalidConfig as exc:
        yield Finding("model", "WRONG", str(exc))
        return
    yield from settings_findings(os.environ, model)
