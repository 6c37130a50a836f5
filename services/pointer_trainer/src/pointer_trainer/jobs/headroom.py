"""What choosing could gain on scored data: baselines on the same queries, the oracle, and what of it is more than luck."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from leverplus import rl_data
from leverplus.dataset import Dataset
from leverplus.embeddings import Embeddings
from leverplus.errors import InvalidInput
from leverplus.evaluation.bootstrap import Floats
from leverplus.evaluation.headroom import ANY, ORACLE, SPLIT, Headroom, SplitChoice, find_headroom, split_choice
from leverplus.evaluation.tables import percent, shots_title
from leverplus.files import write_json
from leverplus.fingerprint import Fingerprint
from leverplus.ids import ItemId, Pointer
from leverplus.pools import Pools
from leverplus.random_order import derive_seed, random_first
from leverplus.rl_data import QueryRecord, RlData
from pointer_trainer.best_fixed import rank_fixed_pointers
from pointer_trainer.context import JobContext
from pointer_trainer.measuring import Measured, measure
from pointer_trainer.openings import is_test, opened_note, read_openings
from pointer_trainer.per_query import write_per_query
from pointer_trainer.pool_policy import pool_policy
from pointer_trainer.replicas import Replicas
from pointer_trainer.requests import BASELINES, HeadroomRequest
from pointer_trainer.rl_files import open_heads
from pointer_trainer.scored_queries import Scorer
from pointer_trainer.systems import ZERO_SHOT, FixedPointers, Systems, available, choose


def headroom(context: JobContext) -> dict[str, Any]:
    """The report for each number of shots in the RL data; headroom.json, headroom.md and per_query.parquet in the run directory.

    The baselines' pointers that the scorer has not judged yet are. best-fixed is ranked on the queries of one half of the images
    and judged on the other half. Candidates that were proposed by a query's own answer are part of the oracle and no part of the
    split choice. InvalidInput for RL data of test queries.
    """
    request = HeadroomRequest.model_validate(context.config)
    root = context.data_root
    head = open_heads(root, [request.rl_data])
    if head.dataset is None:
        raise InvalidInput(f"RL data {request.rl_data} name no dataset; upload them again")
    dataset = Dataset.open(root.dataset(head.dataset["name"]))
    embeddings = Embeddings.open(root.embeddings(dataset.name), dataset)
    data = rl_data.read(root.rl_data(request.rl_data), dataset)
    pools = Pools(dataset, embeddings, pool_policy([data], dataset))
    own = Fingerprint(dataset=dataset.fingerprint(), pool=pools.fingerprint())
    head.require_same(own, subject="the dataset's embeddings and pools", parts=("dataset", "pool"))
    records = _drawn(data, dataset, request)
    numbers = sorted({len(one.pointer) for record in data.records for one in record.candidates if one.pointer})
    if not numbers:
        raise InvalidInput(f"RL data {request.rl_data} hold no pointer with demonstrations: nothing is to be chosen")
    fixed = _crossed_fixed(data, dataset, request.seed)
    sides = [_systems(each, numbers, embeddings, request) for each in fixed]
    asked: Mapping[str, Any] = data.meta.get("request") or {}
    with Replicas(context.scorer_urls, key=context.scorer_key) as replicas:
        scorer = Scorer(
            replicas,
            dataset.name,
            flavour=asked.get("flavour", "official"),
            postprocessing=asked.get("postprocessing", "short-answer"),
            check=context.check,
        )
        measured = measure(
            context,
            scorer,
            lambda query_id: choose(sides[_side(dataset, query_id, request.seed)], embeddings, pools, query_id),
            [record.query_id for record in records],
            own=own,
            accept=lambda found: head.require_same(found, subject="the scorer's answer", parts=("generation", "metric")),
        )
    by_query = {record.query_id: record for record in records}
    images = [dataset.item(query_id).image_id for query_id in measured.query_ids]
    found: list[Headroom] = []
    for number, shots in enumerate(numbers, start=1):
        known = [_known(by_query[query_id], measured, row, shots) for row, query_id in enumerate(measured.query_ids)]
        judged = [(known[row], measured.query_ids[row]) for row in range(len(known))]
        found.append(
            find_headroom(
                shots,
                _baselines(measured, shots),
                np.asarray([max(value for value, _ in of_query.values()) for of_query in known]),
                [_split(of_query, query_id, request.seed) for of_query, query_id in judged],
                float(np.mean([len(of_query) for of_query in known])),
                images,
                draws=request.bootstrap_draws,
                seed=request.seed,
            )
        )
        context.step("headroom", number, len(numbers), **measured.counts.to_json())
    result: dict[str, Any] = {
        "rl_data": request.rl_data,
        "dataset": dataset.name,
        "answers_source": dataset.info.answers_source,
        "queries": len(measured.query_ids),
        "queries_left_out": len(measured.left_out),
        "split_sizes": dict(dataset.info.splits),
        "shots": [one.to_json() for one in found],
        "scores": measured.counts.to_json(),
        "per_query_sha256": write_per_query(context.run_folder, measured, dataset, fence=context.fence),
        "test_openings": [opening.model_dump() for opening in read_openings(root, dataset.name)],
    }
    result["markdown"] = f"{_markdown(result, found)}\n{opened_note(read_openings(root, dataset.name))}\n"
    write_json(context.run_folder / "headroom.json", result, fence=context.fence)
    return result


def _drawn(data: RlData, dataset: Dataset, request: HeadroomRequest) -> list[QueryRecord]:
    tested = [record.query_id for record in data.records if is_test(dataset.item(record.query_id).split)]
    if tested:
        raise InvalidInput(
            f"RL data {request.rl_data} hold {len(tested)} test queries, which only a final evaluation may look at"
        )
    ids = np.asarray([record.query_id for record in data.records], dtype=np.int64)
    limit = len(ids) if request.queries is None else min(request.queries, len(ids))
    chosen = set(random_first(ids, limit, derive_seed("headroom", request.seed)).tolist())
    return [record for record in data.records if record.query_id in chosen]


def _side(dataset: Dataset, query_id: ItemId, seed: int) -> int:
    """Which half of the images a query belongs to."""
    return derive_seed("half", seed, dataset.item(query_id).image_id) % 2


def _crossed_fixed(data: RlData, dataset: Dataset, seed: int) -> list[FixedPointers]:
    """For the queries of each half the fixed pointers that did best in the other one."""
    halves: list[list[QueryRecord]] = [[], []]
    for record in data.records:
        halves[_side(dataset, record.query_id, seed)].append(record)
    first, second = ({int(shots): ranking for shots, ranking in rank_fixed_pointers(half).items()} for half in halves)
    return [second, first]


def _systems(fixed: FixedPointers, numbers: Sequence[int], embeddings: Embeddings, request: HeadroomRequest) -> Systems:
    shots = [0, *numbers]
    baselines, _ = available(BASELINES, shots, fixed, embeddings)
    return Systems(baselines, [], fixed, shots, request.draws, 1, request.seed)


def _baselines(measured: Measured, shots: int) -> dict[str, Floats]:
    """Accuracies [n] of each baseline at so many shots; zero-shot beside them."""
    return {
        contender.system: measured.means(contender)
        for contender, values in measured.accuracies.items()
        if contender.shots == (0 if contender.system == ZERO_SHOT else shots) and len(values) == len(measured.query_ids)
    }


def _known(record: QueryRecord, measured: Measured, row: int, shots: int) -> dict[Pointer, tuple[float, bool]]:
    """Every scored pointer of that length over the query's pool -> accuracy, and whether it was found without the answer."""
    found = {
        one.pointer: (one.vqa_acc_score, one.gen_method != "answer")
        for one in record.candidates
        if len(one.pointer) == shots and one.vqa_acc_score is not None
    }
    for contender, pointers in measured.pointers.items():
        if contender.shots == shots and row < len(pointers):
            for pointer, value in zip(pointers[row], measured.accuracies[contender][row], strict=True):
                found.setdefault(pointer, (value, True))
    return found


def _split(known: Mapping[Pointer, tuple[float, bool]], query_id: ItemId, seed: int) -> SplitChoice | None:
    without_answer = {pointer: value for pointer, (value, is_blind) in known.items() if is_blind}
    return split_choice(list(without_answer), np.asarray([*without_answer.values()]), query_id=query_id, seed=seed)


_VERDICTS = {
    "none": "Nothing to gain: even each query's best scored pointer, lucky hits included, is less than a point above {best}.",
    "not shown": "No sign that choosing helps: the best scored pointers are {oracle:+.1f} points above {best}, but nothing in "
    "the scores tells them from luck.",
    "shown": "Choosing matters: what half of a query's candidates teach about its demonstrations is worth {learnable:+.1f} "
    "points among the other half. Over {best} there are at most {oracle:+.1f} points to gain, lucky hits included.",
}


_UNKNOWN = (
    "Not known: the best scored pointers are {oracle:+.1f} points above {best}, and too few queries have four candidates that "
    "share demonstrations to tell whether it is luck. At one shot none do: score pointers of two."
)


def _markdown(result: Mapping[str, Any], found: Sequence[Headroom]) -> str:
    lines = [
        f"Headroom on {result['dataset']}, {result['queries']} queries of {result['rl_data']}: accuracy in percent with 95 % "
        f"intervals. {ORACLE}: the best of a query's scored candidates, an upper bound that lucky hits raise. {SPLIT}: the "
        "choice among one half of a query's candidates that the scores of the other half suggest, without luck; "
        f"{ANY}: the mean of these candidates. best-fixed is ranked on other images than it is judged on.",
    ]
    for one in found:
        lines += ["", f"**{shots_title(one.shots)}**, {one.candidates:.1f} scored candidates a query", ""]
        lines += ["| demonstrations | accuracy |", "| --- | ---: |"]
        lines += [f"| {row.system} | {percent(row.mean, row.low, row.high)} |" for row in one.rows]
        learnable = one.learnable
        values = {
            "best": one.best_baseline,
            "oracle": 100 * one.oracle_gain.difference,
            "learnable": 100 * (learnable.difference if learnable else 0.0),
        }
        verdict = _UNKNOWN if one.verdict == "not shown" and learnable is None else _VERDICTS[one.verdict]
        lines += ["", verdict.format(**values)]
        if one.split_gain is not None:
            gain = one.split_gain
            shown = percent(gain.difference, gain.low, gain.high, sign="+")
            lines.append(f"{SPLIT} less {one.best_baseline}: {shown}.")
        needed = ", ".join(f"{100 * float(gain):g} points: {count}" for gain, count in one.queries_needed.items())
        lines.append(f"Queries that show a gain over {one.best_baseline} four times in five: {needed}.")
    sizes = ", ".join(f"{count} {split}" for split, count in result["split_sizes"].items())
    return "\n".join([*lines, "", f"There are {sizes} queries."]) + "\n"
