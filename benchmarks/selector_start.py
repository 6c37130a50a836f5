"""How long the selector API takes to be ready, and what it holds in memory, on the data that `make demo` leaves.

    python benchmarks/selector_start.py [--data .leverplus/demo] [--repeats 5]

From the start of the process to the first 200 of /health/ready, asked every 10 ms; the resident set after every test query was
asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from provenance import RESULTS, commit, machine

from leverplus.checkpoints import read_info
from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset
from leverplus.deployments import read_deployment
from leverplus.launcher.config import free_ports

_LIMIT_S = 30


def start(data: Path, query_ids: list[int]) -> tuple[float, float]:
    """Seconds until ready, and MiB held at the end."""
    (port,) = free_ports(1, "127.0.0.1")
    url = f"http://127.0.0.1:{port}"
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "selector_api"],
        env={**os.environ, "LEVERPLUS_DATA": str(data), "LEVERPLUS_SELECTOR_PORT": str(port)},
        stderr=subprocess.DEVNULL,
    )
    try:
        with httpx.Client(base_url=url) as client:
            while not _is_ready(client):
                if process.poll() is not None or time.perf_counter() - started > _LIMIT_S:
                    raise SystemExit(f"the selector was not ready after {_LIMIT_S} s; is {data} what `make demo` left?")
                time.sleep(0.01)
            ready = time.perf_counter() - started
            for query_id in query_ids:
                client.get(f"/select?query_id={query_id}").raise_for_status()
        pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        return ready, pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    finally:
        process.terminate()
        process.wait(_LIMIT_S)


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(".leverplus/demo"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "selector_start.json")
    arguments = parser.parse_args()
    at_start = machine()
    root = DataRoot(arguments.data.resolve())
    info = read_info(root.checkpoint(read_deployment(root, "production").checkpoint_id))
    query_ids = [int(item_id) for item_id in Dataset.open(root.dataset(info.dataset)).split_ids("test")]
    found = [start(arguments.data.resolve(), query_ids) for _ in range(arguments.repeats)]
    ready, held = ([round(value, 3) for value in values] for values in zip(*found, strict=True))
    print(f"ready after {statistics.median(ready):.2f} s ({min(ready):.2f} to {max(ready):.2f})")
    print(f"{max(held):.0f} MiB after {len(query_ids)} selects")
    result: dict[str, Any] = {
        "command": "python benchmarks/selector_start.py",
        "machine": at_start,
        "commit": commit(),
        "dataset": info.dataset,
        "selects": len(query_ids),
        "ready_s": ready,
        "resident_mib": held,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
