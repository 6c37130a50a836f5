"""Requests made from a service's OpenAPI document by schemathesis: as it allows, as it forbids, and with names that are there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hostile_services import Services

_HOOKS = Path(__file__).with_name("hostile_hooks.py")
# A request that the document allows may well be refused: for what it names, or for what two fields say together.
_LEFT_OUT = "positive_data_acceptance"
# A forbidden value may have been replaced by one that is there.
_LEFT_OUT_WITH_NAMES = f"{_LEFT_OUT},negative_data_rejection,missing_required_header"
_SLOWEST_S = 30


def ask_by_schema(
    services: Services, service: str, folder: Path, *, cases: int, seed: int, named: bool, limit_s: float = 600.0
) -> dict[str, Any]:
    """`cases`: at most so many drawn an operation, beside those at the bounds of its fields. `named`: with names that are there.

    {"cases", "failures": what was found, as schemathesis tells it, "errors"}; RuntimeError where it could not be run.
    """
    report = folder / f"{service}{'-named' if named else ''}.json"
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{services.urls[service]}/openapi.json"]
    command += ["--header", f"Authorization: Bearer {services.keys['admin']}", "--checks", "all"]
    command += ["--exclude-checks", _LEFT_OUT_WITH_NAMES if named else _LEFT_OUT, "--phases", "examples,coverage,fuzzing"]
    command += ["--seed", str(seed), "--max-examples", str(cases), "--continue-on-failure", "--no-shrink"]
    if named:
        # Where there is no worker, the events of a job that is there never end.
        command += ["--exclude-path", "/jobs/{job_id}/events"]
    command += ["--request-timeout", str(_SLOWEST_S), "--max-response-time", str(_SLOWEST_S)]
    command += ["--report", "json", "--report-json-path", str(report)]
    environment = {**os.environ, "NO_COLOR": "1", **({"SCHEMATHESIS_HOOKS": str(_HOOKS)} if named else {})}
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=limit_s)
    told = ended.stdout + ended.stderr
    if not report.is_file() or not report.read_text():
        raise RuntimeError(f"schemathesis told nothing about {service}: {told[-2000:]}")
    found: dict[str, Any] = json.loads(report.read_text())
    counted = found["test_cases"]
    # A full account, for whoever mends it.
    account = told if counted["unique_failures"] or found["errors"] else ""
    return {"cases": counted["generated"], "failures": found["failures"], "errors": found["errors"], "account": account}
