"""What is in an RL file, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from leverplus.rl_data.reading import Notes, file_fingerprint, read_with_notes
from leverplus.rl_data.records import Candidate
from leverplus.rl_data.sources import open_source


def inspect(path: Path | str) -> dict[str, Any]:
    """Reads the file (refusing what `read` refuses) and counts; plain values, ready for JSON.

    Shares are of all candidates, in [0, 1]. `correct.share` is of the candidates whose correctness is known; a query counts as
    all_correct or all_wrong where every candidate is known to be so: it can teach a selector nothing.
    `duplicates` are rows that were merged into another of the same ordered pointer.
    """
    source = open_source(Path(path))
    notes = Notes()
    shots: Counter[int] = Counter()
    modes: Counter[str] = Counter({"file": 0, "fallback": 0, "error": 0, "unknown": 0})
    methods: Counter[str] = Counter()
    correctness: Counter[int | None] = Counter()
    verdicts: Counter[str] = Counter()
    pool_sizes: Counter[int] = Counter()
    pool_sources: Counter[str] = Counter()
    own_query_in_pool = 0
    for record in read_with_notes(source, notes):
        shots.update(len(candidate.pointer) for candidate in record.candidates)
        modes.update(candidate.vqa_eval_mode for candidate in record.candidates)
        methods.update(candidate.gen_method or "unknown" for candidate in record.candidates)
        correctness.update(candidate.vqa_correct for candidate in record.candidates)
        verdicts[_verdict(record.candidates)] += 1
        pool_sizes[len(record.candidate_pool_ids)] += 1
        pool_sources[record.pool_source] += 1
        own_query_in_pool += record.query_id in record.candidate_pool_ids
    candidates = modes.total()
    known = correctness[0] + correctness[1]
    report: dict[str, Any] = {
        "file": str(path),
        "form": source.form,
        "queries": verdicts.total(),
        "candidates": candidates,
        "shots": {str(count): shots[count] for count in sorted(shots)},
        "modes": {mode: {"count": count, "share": _share(count, candidates)} for mode, count in modes.items()},
        "gen_methods": dict(methods.most_common()),
        "correct": {"count": correctness[1], "known": known, "share": _share(correctness[1], known)},
        "queries_all_correct": verdicts["all correct"],
        "queries_all_wrong": verdicts["all wrong"],
        "queries_without_candidates": verdicts["none"],
        "duplicates": notes.merged_rows,
        "pool_sizes": {str(size): pool_sizes[size] for size in sorted(pool_sizes)},
        "pool_sources": dict(pool_sources),
        "pools_with_their_query": own_query_in_pool,
        "ignored_fields": dict(notes.ignored_fields),
        "fingerprint": file_fingerprint(source).digests(),
    }
    return {**report, "warnings": list(_warnings(report, notes))}


def _verdict(candidates: tuple[Candidate, ...]) -> str:
    if not candidates:
        return "none"
    if all(candidate.vqa_correct == 1 for candidate in candidates):
        return "all correct"
    if all(candidate.vqa_correct == 0 for candidate in candidates):
        return "all wrong"
    return "mixed or unknown"


def _share(count: int, total: int) -> float | None:
    return count / total if total else None


def _warnings(report: dict[str, Any], notes: Notes) -> Iterable[str]:
    unknown, candidates = report["modes"]["unknown"]["count"], report["candidates"]
    if unknown:
        yield f"{unknown} of {candidates} candidates do not say how they were scored (vqa_eval_mode)"
    if notes.scores_of_errors_dropped:
        yield f"{notes.scores_of_errors_dropped} scores of candidates whose scoring failed were dropped: they are unknown, not 0"
    if "from_pointers" in report["pool_sources"]:
        yield "the file names no pools; the ids of all its pointers stand in for them (from_pointers)"
    if report["pools_with_their_query"]:
        yield f"{report['pools_with_their_query']} pools hold their own query"
    if not report["fingerprint"]:
        yield "the file has no fingerprint: nothing tells which data, VLM and metric its scores come from"
    if notes.ignored_fields:
        yield f"fields that are not part of the format were ignored: {', '.join(sorted(notes.ignored_fields))}"
