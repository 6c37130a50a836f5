"""The tables of benchmarks/quality.py: (name, system, train queries, candidates a query or None for all that are proposed)."""

from __future__ import annotations

from quality_systems import ANSWERS, BASELINES, System

Entry = tuple[str, System, int, int | None]

QUERIES = 4_000

TABLES: dict[str, list[Entry]] = {
    "main": [(name, system, QUERIES, None) for name, system in {**BASELINES, "v5, answers, RCE": ANSWERS}.items()],
}
