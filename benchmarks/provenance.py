"""What every result file says of how it was made."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def machine() -> dict[str, Any]:
    """Processor, cores, Python and the load that other work put on the machine when this was called."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_1_min": round(os.getloadavg()[0], 2),
    }


def commit() -> str | None:
    """The checked-out commit, with -dirty where files but results differ from it; in an archive of git's its commit; None
    elsewhere."""
    head = _git("rev-parse", "HEAD") or _archived()
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    return f"{head}-dirty" if head and changed else head


def _archived() -> str | None:
    found = (ROOT / "benchmarks" / "COMMIT").read_text().strip()
    return None if found.startswith("$") else found


def _git(*arguments: str) -> str | None:
    found = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None
