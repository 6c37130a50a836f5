"""The requests of a run as a shell script, to be repeated by hand."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from leverplus.demo.config import DemoConfig
from leverplus.demo.steps import ALIAS, Outcome, evaluate_request, generate_request
from leverplus.launcher import Ports, Stack


def curl_script(config: DemoConfig, stack: Stack, outcome: Outcome) -> str:
    """Every request of the main job with this run's ids. Ports: the running services' if they stay, else those of `up`."""
    ports = stack.config.ports if config.keep else Ports()
    urls = {name: f"http://127.0.0.1:{getattr(ports, name)}" for name in ("scorer", "trainer", "selector")}
    cut, query_id = config.cut, outcome.selection["query_id"]
    score = {"dataset": cut.dataset, "queries": [{"query_id": query_id, "pointers": [[], outcome.selection["pointer"]]}]}
    promotion = {"alias": ALIAS, "by": "me"}
    train = {"rl_data": [outcome.rl_data_id], "config": cut.train}
    start = (
        "# The services of this run are up."
        if config.keep
        else (
            "# First start the services, in another terminal:\n"
            f"#   {_program()} up --data {shlex.quote(str(config.data))} --vlm {shlex.quote(str(config.vlm.resolve()))}"
        )
    )
    lines = [
        "#!/bin/sh",
        start,
        *(f"{name.upper()}={url}" for name, url in urls.items()),
        "",
        "# jobs: each answers with a job_id; the next needs the result of the one before",
        _post("$TRAINER/embeddings", {"dataset": cut.dataset}),
        _post("$TRAINER/rl-data/generate", generate_request(cut)),
        _post("$TRAINER/train", train),
        _post("$TRAINER/evaluate", evaluate_request(cut, outcome.checkpoint_id)),
        'curl -s "$TRAINER/jobs"    # and $TRAINER/jobs/<job_id>, $TRAINER/jobs/<job_id>/events',
        "",
        "# answers at once",
        _post("$SCORER/score", score),
        _post(f"$TRAINER/checkpoints/{outcome.checkpoint_id}/promote", promotion),
        f'curl -s "$SELECTOR/select?query_id={query_id}&shots=2"',
    ]
    return "\n".join(lines) + "\n"


def _program() -> str:
    """The command of this installation, which need not be on the PATH."""
    here = Path(sys.executable).with_name("leverplus")
    return shlex.quote(str(here)) if here.is_file() else "leverplus"


def _post(url: str, body: Mapping[str, Any]) -> str:
    return f"""curl -s "{url}" -H 'Content-Type: application/json' -d {shlex.quote(orjson.dumps(body).decode())}"""
