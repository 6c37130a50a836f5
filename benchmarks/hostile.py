"""Thousands of requests made from each OpenAPI document, to the real services; `make hostile` runs it and the broken files.

    python benchmarks/hostile.py [--cases 150] [--seed 1]

Writes benchmarks/results/hostile.json. Ends with 1 where anything was found; what, is printed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hostile_schemas import ask_by_schema
from hostile_services import hostile_services, is_ready
from provenance import RESULTS, commit, machine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=150, help="drawn for each operation, at most")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    results: dict[str, Any] = {"commit": commit(), "machine": machine(), "schemathesis": version("schemathesis")}
    results |= {"cases_an_operation": arguments.cases, "seed": arguments.seed, "services": {}}
    faults = 0
    with tempfile.TemporaryDirectory() as name, hostile_services(Path(name)) as services:
        for service in services.urls:
            told: dict[str, Any] = {}
            for named in (False, True):
                begun = time.monotonic()
                found = ask_by_schema(services, service, Path(name), cases=arguments.cases, seed=arguments.seed, named=named)
                print(found["account"], end="")
                faults += len(found["failures"]) + len(found["errors"])
                counted = {"requests": found["cases"], "faults": len(found["failures"]), "errors": len(found["errors"])}
                told["with_names_that_are_there" if named else "as_drawn"] = counted | {
                    "seconds": round(time.monotonic() - begun, 1)
                }
            healthy = is_ready(services, service)
            faults += not healthy
            results["services"][service] = told | {"ready_afterwards": healthy}
            print(f"{service}: {told}, ready afterwards: {healthy}")
    (RESULTS / "hostile.json").write_text(json.dumps(results, indent=2) + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
