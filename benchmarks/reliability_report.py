"""Writes the table in docs/reliability.md from benchmarks/results/reliability.json.

python benchmarks/reliability_report.py
"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from provenance import RESULTS, ROOT

DOCUMENT = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def table(found: dict[str, Any]) -> str:
    away: dict[str, list[float]] = defaultdict(list)
    for kill in found["kills"]:
        away[kill["victim"]].append(kill["away_s"])
    outcomes, calm = found["outcomes"], found["calm_latency_s"]
    times = f"for {found['calm_s']:.0f} s without kills and {found['seconds']:.0f} s with them"
    load = f"{found['rate_per_s']} requests/s, 80 % of capacity, {times}; {found['not_sent']} not sent"
    killed = {name: ", ".join(f"{each:.1f}" for each in times) for name, times in away.items()}
    rows: list[tuple[str, Any]] = [
        ("load", load),
        *((f"{name} killed", f"{len(away[name])} times, away {times} s") for name, times in killed.items()),
        ("answered", f"{outcomes.get('answered', 0):,}"),
        ("refused (problem+json, 429 or 503)", outcomes.get("refused", 0)),
        ("not accepted (connection refused while its service was away)", outcomes.get("not accepted", 0)),
        ("cut off (connection lost at its service's kill)", outcomes.get("cut off", 0)),
        ("wrong (anything else)", outcomes.get("wrong", 0)),
        ("jobs accepted, lost, doubled", f"{found['jobs_accepted']}, {found['jobs_lost']}, {found['jobs_doubled']}"),
        ("scores answered, lost, doubled", f"{found['scores_answered']:,}, {found['scores_lost']}, {found['scores_doubled']}"),
        ("p50, p99 while nothing was away", f"{1000 * calm['p50']:.0f}, {1000 * calm['p99']:.0f} ms"),
        *((f"memory of {name}", _life(life)) for name, life in found["lives"].items()),
        ("temporary files left, kept at the next start", f"{len(found['temporary_files'])}, {found['temporary_files_kept']}"),
    ]
    machine = found["machine"]
    told = f"`{found['command']}`, {machine['cores']} cores, load {machine['load_1_min']} at the end:"
    return "\n".join([told, "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _life(life: dict[str, Any]) -> str:
    largest = f"{life['largest_mib']:.0f} MiB at most"
    if life["is_flat"] is None:
        return f"{largest}; no life was long enough to judge"
    judged = f"{life['lives_judged']} of {life['lives']} lives, {life['judged_s']} s in all"
    at_end = f"{life['grew_mib_per_min_at_end']:.1f} MiB a minute at the end"
    grew = f"the worst grew by {life['grew_mib']:.1f} MiB and {life['grew_files']:.0f} open files, by {at_end}"
    return f"{largest}; {judged}: {'flat' if life['is_flat'] else 'NOT flat'}, {grew}"


def main() -> None:
    found: dict[str, Any] = json.loads((RESULTS / "reliability.json").read_text())
    text = DOCUMENT.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    DOCUMENT.write_text(f"{before}{BEGIN}\n{table(found)}\n{END}{after}")


if __name__ == "__main__":
    main()
