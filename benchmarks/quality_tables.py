"""The tables of benchmarks/quality.py: (name, system, train queries, candidates a query or None for all that are proposed)."""

from __future__ import annotations

from quality_systems import BASELINES, OURS_ALL, System

Entry = tuple[str, System, int, int | None]

QUERIES = 4_000

TABLES: dict[str, list[Entry]] = {
    "main": [(name, system, QUERIES, None) for name, system in {**OURS_ALL, **BASELINES}.items()],
}
