"""Gates of the in-context VLM, through the scorer's own engine on a CPU in float32.

    python benchmarks/evaluate_in_context_vlm.py --out benchmarks/results/in_context_vlm.json

Queries are the val split of the dataset `invented-words` (seed 0, generated if the folder is not there), demonstrations come from
its train split and are chosen by what is known of them: exactly one bears on the query, none does, two complete each other. An
answer counts when the extracted text equals the item's. easy-vqa is asked without demonstrations on its test questions.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
import transformers
from in_context_vlm.easy_questions import read_split
from provenance import ROOT, commit, machine

from leverplus.dataset import Dataset
from leverplus.dataset.invented_words import Structure, generate, read_structures, suffices, sufficient_pointer
from leverplus.dataset.invented_words.families import bears_on
from leverplus.dataset.invented_words.words import pick, shuffled
from leverplus.metric.extraction import extract_answer
from leverplus.prompts import Shot
from leverplus.random_order import derive_seed
from vqa_scorer.engines import ScoringPrompt, all_texts
from vqa_scorer.engines.transformers import TransformersEngine

POOL = 64
Choice = Callable[[Structure, Sequence[Structure], Random], list[Structure] | None]


@dataclass(frozen=True)
class Gate:
    """A figure with what it must and should be; `at_most` turns the comparison round."""

    name: str
    family: str
    choose: Choice
    must: float | None = None
    goal: float | None = None
    at_most: bool = False


def one_relevant(shots: int, *, alike: bool = False) -> Choice:
    """One item that tells, at any place among others that do not; `alike` ones share language and question."""

    def choose(query: Structure, train: Sequence[Structure], random: Random) -> list[Structure]:
        telling = pick(random, [item for item in train if suffices(query, [item])])
        others = [item for item in train if not bears_on(query, item)]
        if alike:
            others = [item for item in others if (item.language, item.asked) == (query.language, query.asked)]
        return shuffled(random, [telling, *(pick(random, others) for _ in range(shots - 1))])

    return choose


def none_relevant(shots: int) -> Choice:
    def choose(query: Structure, train: Sequence[Structure], random: Random) -> list[Structure]:
        others = [item for item in train if not bears_on(query, item)]
        return [pick(random, others) for _ in range(shots)]

    return choose


def completing_two(query: Structure, train: Sequence[Structure], random: Random) -> list[Structure]:
    """Two items that suffice together and not alone, in any order."""
    partial = [item for item in train if bears_on(query, item) and not suffices(query, [item])]
    first = pick(random, partial)
    second = pick(random, [item for item in partial if suffices(query, [first, item])])
    return shuffled(random, [first, second])


def from_pool(shots: int) -> Choice:
    """What the structural oracle takes from a random pool; None where the pool does not suffice."""

    def choose(query: Structure, train: Sequence[Structure], random: Random) -> list[Structure] | None:
        pool = shuffled(random, train)[:POOL]
        pointer = sufficient_pointer(query, pool, shots)
        by_id = {item.item_id: item for item in pool}
        return None if pointer is None else [by_id[item_id] for item_id in pointer]

    return choose


def no_demonstration(_query: Structure, _train: Sequence[Structure], _random: Random) -> list[Structure]:
    return []


GATES = (
    Gate("naming, 1 demonstration, it is relevant", "naming", one_relevant(1), 0.95, 0.95),
    Gate("naming, 2 demonstrations, one relevant", "naming", one_relevant(2), 0.88, 0.93),
    Gate("naming, 4 demonstrations, one relevant", "naming", one_relevant(4), 0.70, 0.85),
    Gate("naming, 2 demonstrations, one relevant, the other alike", "naming", one_relevant(2, alike=True)),
    Gate("naming, 4 demonstrations, one relevant, the others alike", "naming", one_relevant(4, alike=True)),
    Gate("naming, 2 demonstrations, none relevant", "naming", none_relevant(2), 0.05, 0.05, at_most=True),
    Gate("pair, its two demonstrations", "pair", completing_two, 0.80),
    Gate("operator, 2 demonstrations that suffice", "operator", from_pool(2)),
    Gate("plain, no demonstration", "plain", no_demonstration, 0.90),
    Gate("plain, 2 demonstrations in other languages", "plain", none_relevant(2)),
)


def measure(engine: TransformersEngine, dataset: Dataset, gate: Gate, limit: int, seed: int) -> dict[str, Any]:
    """Share of right answers over the val queries of the gate's family."""
    structures = read_structures(dataset.folder)
    train = [structures[item_id] for item_id in dataset.split_ids("train")]
    prompts: list[ScoringPrompt] = []
    answers: list[str] = []
    for item_id in dataset.split_ids("val"):
        query = structures[item_id]
        if query.family != gate.family or len(prompts) == limit:
            continue
        chosen = gate.choose(query, train, Random(derive_seed("gate", gate.name, seed, item_id)))
        if chosen is None:
            continue
        shots = tuple(_shot(dataset, item.item_id, answered=True) for item in chosen)
        prompts.append(ScoringPrompt(shots, _shot(dataset, item_id, answered=False)))
        answers.append(dataset.item(item_id).answer or "")
    started = time.monotonic()
    said = [extract_answer(text) for text in all_texts(engine.generate(prompts))]
    seconds = time.monotonic() - started
    share = sum(one == truth for one, truth in zip(said, answers, strict=True)) / len(answers)
    met = None if gate.must is None else (share <= gate.must if gate.at_most else share >= gate.must)
    return {
        "gate": gate.name,
        "queries": len(answers),
        "share_right": round(share, 4),
        "must": gate.must,
        "goal": gate.goal,
        "met": met,
        "prompts_per_second": round(len(answers) / seconds, 1),
    }


def measure_easy(engine: TransformersEngine, limit: int | None) -> dict[str, Any]:
    """easy-vqa's test questions, evenly spaced, without demonstrations."""
    test = read_split("test")
    count = len(test.questions) if limit is None else min(limit, len(test.questions))
    items = [i * len(test.questions) // count for i in range(count)]
    prompts = [ScoringPrompt((), Shot(test.image_paths[test.image_ids[i]], test.questions[i])) for i in items]
    said = [extract_answer(text) for text in all_texts(engine.generate(prompts))]
    share = sum(one == test.answers[i] for one, i in zip(said, items, strict=True)) / count
    return {
        "gate": "easy-vqa test, no demonstration",
        "queries": count,
        "share_right": round(share, 4),
        "must": 0.9,
        "goal": None,
        "met": share >= 0.9,
        "commonest_answer": round(Counter(test.answers).most_common(1)[0][1] / len(test.answers), 4),
    }


def _shot(dataset: Dataset, item_id: int, *, answered: bool) -> Shot:
    item = dataset.item(item_id)
    return Shot(dataset.image_path(item_id), item.question, item.answer if answered else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "assets" / "in-context-vlm")
    dataset_folder = ROOT / ".leverplus" / "datasets" / "invented-words"
    parser.add_argument("--dataset", type=Path, default=dataset_folder, help="folder of the dataset")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--limit", type=int, default=400, help="queries a gate")
    parser.add_argument("--easy-limit", type=int, help="easy-vqa questions, 0 for none [all 9,673]")
    parser.add_argument("--seed", type=int, default=0, help="of the demonstrations")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()

    if not arguments.dataset.exists():
        generate(arguments.dataset)
    dataset = Dataset.open(arguments.dataset)
    engine = TransformersEngine(arguments.model, device="cpu", batch_size=arguments.batch_size, threads=arguments.threads)
    engine.load()
    results: list[dict[str, Any]] = []
    for gate in GATES:
        results.append(measure(engine, dataset, gate, arguments.limit, arguments.seed))
        print(json.dumps(results[-1]), flush=True)
    if arguments.easy_limit != 0:
        results.append(measure_easy(engine, arguments.easy_limit))
        print(json.dumps(results[-1]), flush=True)
    report = {
        "command": "python " + " ".join(sys.argv),
        "commit": commit(),
        "dataset": dataset.fingerprint(),
        "generation": engine.generation_fingerprint(),
        "machine": {
            **machine(),
            "threads": arguments.threads,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "gates": results,
    }
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
