"""What `invented-words` must show with the shipped VLM: zero-shot, random, most-similar and structural oracle at two shots.

    leverplus import invented-words && leverplus embed invented-words
    python benchmarks/invented_words_table.py --data .leverplus

Pools are 64 random items of train (the default policy), answers greedy, through the scorer's own engine in this process, judged
with the official VQA accuracy; 95 % intervals draw images. Test is not touched unless --split names it.
The structural oracle takes a pointer that suffices by how the items were made; "oracle, where there is one" is over the queries
whose pool holds such a pointer, "oracle" over all, with the first random draw for the others. "foreign" shows plain questions
two random demonstrations that are not in English. The probe is a linear map from the image block of train to val.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from invented_words_display import show
from linear_probe import fit_and_predict
from provenance import RESULTS, ROOT, commit, machine

from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset
from leverplus.dataset.invented_words import Structure, read_structures, sufficient_pointer
from leverplus.dataset.invented_words.families import FAMILIES
from leverplus.dataset.invented_words.words import ENGLISH
from leverplus.embeddings import Embeddings
from leverplus.evaluation import summarise
from leverplus.files import write_json
from leverplus.fingerprint import Fingerprint
from leverplus.metric import extract_answer, metric_fingerprint, score_answer
from leverplus.policies import random_positions, similar_positions
from leverplus.pools import PoolPolicy, Pools
from leverplus.prompts import Shot
from vqa_scorer.engines import ScoringPrompt, all_texts
from vqa_scorer.engines.transformers import TransformersEngine

SHOTS, DRAWS = 2, 5
PROBED = ("colour", "shape", "frame")
Pointer = tuple[int, ...]


@dataclass
class Answers:
    """Accuracy of each prompt; what was asked once is not asked again."""

    dataset: Dataset
    engine: TransformersEngine
    known: dict[tuple[int, Pointer], float] = field(default_factory=dict[tuple[int, Pointer], float])

    def ask(self, wanted: Sequence[tuple[int, Pointer]]) -> None:
        new = [one for one in dict.fromkeys(wanted) if one not in self.known]
        texts = all_texts(self.engine.generate([self._prompt(*one) for one in new]))
        for (query, pointer), text in zip(new, texts, strict=True):
            accuracy = score_answer(extract_answer(text), self.dataset.item(query).answers).accuracy
            assert accuracy is not None, "every item has its ten answers"
            self.known[query, pointer] = accuracy

    def _prompt(self, query: int, pointer: Pointer) -> ScoringPrompt:
        return ScoringPrompt(tuple(self._shot(one, shown=True) for one in pointer), self._shot(query, shown=False))

    def _shot(self, item_id: int, *, shown: bool) -> Shot:
        item = self.dataset.item(item_id)
        return Shot(self.dataset.image_path(item_id), item.question, item.answer if shown else None)


@dataclass(frozen=True)
class Choices:
    """Pointers of one query. `oracle` and `foreign` are None where there is none."""

    query: int
    systems: dict[str, list[Pointer]]
    oracle: Pointer | None
    foreign: Pointer | None


def choose(query: int, pools: Pools, embeddings: Embeddings, structures: Sequence[Structure]) -> Choices:
    pool = pools.pool(query)
    items = [structures[item_id] for item_id in pool.tolist()]

    def ids(positions: Sequence[int]) -> Pointer:
        return tuple(int(pool[position]) for position in positions)

    random = [ids(random_positions(len(pool), SHOTS, seed=draw, query=query)) for draw in range(DRAWS)]
    systems: dict[str, list[Pointer]] = {"zero-shot": [()], "random": random}
    for kind in ("joint", "image", "text"):
        vector, candidates = embeddings.query[query], embeddings.candidate[pool]
        systems[f"most similar, {kind}"] = [ids(similar_positions(vector, candidates, embeddings.manifest.blocks, kind, SHOTS))]
    found = sufficient_pointer(structures[query], items, SHOTS)
    oracle = None if found is None else tuple(int(one) for one in found)
    systems["oracle"] = [random[0] if oracle is None else oracle]
    order = ids(random_positions(len(pool), len(pool), seed=DRAWS, query=query))
    not_english = tuple(one for one in order if structures[one].language != ENGLISH)[:SHOTS]
    is_plain = structures[query].family == "plain"
    return Choices(query, systems, oracle, not_english if is_plain and len(not_english) == SHOTS else None)


def summaries(dataset: Dataset, made: Sequence[Choices], answers: Answers, baseline: str | None) -> list[dict[str, Any]]:
    """One record a system: n, mean, low, high, and the paired difference from the baseline."""
    columns = {
        (name, SHOTS): np.array([[answers.known[one.query, one.systems[name][draw]] for one in made] for draw in range(count)])
        for name, count in ((name, len(pointers)) for name, pointers in made[0].systems.items())
    }
    clusters = [dataset.item(one.query).image_id for one in made]
    evaluation = summarise(columns, clusters, baselines=[baseline] if baseline else [])
    against = {row.system: row for row in evaluation.differences}
    return [
        {
            "system": row.system,
            "n": row.n,
            "mean": row.mean,
            "low": row.low,
            "high": row.high,
            "over_random": None
            if row.system not in against
            else [against[row.system].difference, against[row.system].low, against[row.system].high],
        }
        for row in evaluation.rows
    ]


def simple_summary(values: Sequence[float], clusters: Sequence[str]) -> dict[str, Any]:
    row = summarise({("", 0): np.asarray(values, dtype=np.float64)}, clusters, baselines=[]).rows[0]
    return {"n": row.n, "mean": row.mean, "low": row.low, "high": row.high}


def probe(dataset: Dataset, embeddings: Embeddings, structures: Sequence[Structure], split: str) -> list[dict[str, Any]]:
    """Each image once; fitted on train, tried on `split`."""

    def images(name: str) -> list[int]:
        return list({dataset.item(item_id).image_id: int(item_id) for item_id in dataset.split_ids(name)}.values())

    train, test = images("train"), images(split)
    block = embeddings.block("image")
    vectors: list[npt.NDArray[np.float32]] = [np.asarray(embeddings.candidate[ids, block]) for ids in (train, test)]
    found: list[dict[str, Any]] = []
    for name in PROBED:
        said = fit_and_predict(vectors[0], [getattr(structures[one], name) for one in train], vectors[1])
        right = [float(label == getattr(structures[one], name)) for label, one in zip(said, test, strict=True)]
        summary = simple_summary(right, [dataset.item(one).image_id for one in test])
        found.append({"of": name, "train_images": len(train), **summary})
    return found


def wanted(
    groups: dict[str, list[dict[str, Any]]], subsets: dict[str, Any], probes: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Each figure beside its target."""
    overall = {row["system"]: row["mean"] for row in groups["all"]}
    plain = {row["system"]: row["mean"] for row in groups.get("plain", [])}
    oracle = subsets["oracle, where there is one"]["mean"]
    lines: list[tuple[str, float | None, str, float]] = [
        ("random", overall["random"], "at most", 0.25),
        ("structural oracle, where there is one", oracle, "at least", 0.75),
        (
            "oracle minus most similar, joint (both over all)",
            overall["oracle"] - overall["most similar, joint"],
            "at least",
            0.25,
        ),
        ("zero-shot on plain", plain.get("zero-shot"), "at least", 0.90),
        *((f"probe of {one['of']}", one["mean"], "at least", 0.90) for one in probes if one["of"] in ("colour", "shape")),
    ]
    return [
        {
            "figure": name,
            "measured": value,
            "wanted": f"{word} {bound}",
            "met": None if value is None else bool(value <= bound if word == "at most" else value >= bound),
        }
        for name, value, word, bound in lines
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / ".leverplus", help="data root that holds dataset and embeddings")
    parser.add_argument("--dataset", default="invented-words")
    parser.add_argument("--split", default="val")
    parser.add_argument("--limit", type=int, help="queries, for a trial")
    parser.add_argument("--vlm", type=Path, default=ROOT / "assets" / "in-context-vlm")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file [results/invented_words.json for the whole val split, else none]")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    root = DataRoot(arguments.data)
    dataset = Dataset.open(root.dataset(arguments.dataset))
    embeddings = Embeddings.open(root.embeddings(arguments.dataset), dataset)
    structures = read_structures(dataset.folder)
    probes = probe(dataset, embeddings, structures, arguments.split)
    policy = PoolPolicy()
    pools = Pools(dataset, None, policy)
    queries = [int(one) for one in dataset.split_ids(arguments.split)[: arguments.limit]]
    made = [choose(query, pools, embeddings, structures) for query in queries]

    engine = TransformersEngine(
        arguments.vlm,
        device=arguments.device,
        dtype="float32",
        batch_size=arguments.batch_size,
        threads=arguments.threads,
    )
    engine.load()
    answers = Answers(dataset, engine)
    began = time.perf_counter()
    for one in _batches(made, 64):
        answers.ask([(c.query, pointer) for c in one for pointers in c.systems.values() for pointer in pointers])
        answers.ask([(c.query, c.foreign) for c in one if c.foreign is not None])
    seconds = time.perf_counter() - began

    groups = {"all": summaries(dataset, made, answers, "random")}
    for family in FAMILIES:
        of_family = [one for one in made if structures[one.query].family == family]
        if of_family:
            groups[family] = summaries(dataset, of_family, answers, "random")
    subsets = subset_figures(dataset, structures, made, answers)
    goals = wanted(groups, subsets, probes)
    show(groups, subsets, probes, goals)
    fingerprint = Fingerprint(dataset.fingerprint(), pools.fingerprint(), engine.generation_fingerprint(), metric_fingerprint())
    report = {
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit(),
        "machine": machine(),
        "split": arguments.split,
        "shots": SHOTS,
        "random_draws": DRAWS,
        "fingerprint": fingerprint.to_json(),
        "embeddings": embeddings.fingerprint(),
        "prompts": len(answers.known),
        "prompts_per_s": round(len(answers.known) / seconds, 1),
        "wanted": goals,
        "systems": groups,
        "subsets": subsets,
        "probes": probes,
    }
    is_whole = arguments.limit is None and (arguments.dataset, arguments.split) == ("invented-words", "val")
    out = arguments.out or (RESULTS / "invented_words.json" if is_whole else None)
    if out is not None:
        write_json(out, report)


def subset_figures(
    dataset: Dataset, structures: Sequence[Structure], made: Sequence[Choices], answers: Answers
) -> dict[str, Any]:
    """What holds for a part of the queries only, by name."""

    def over(chosen: Sequence[tuple[int, float]]) -> dict[str, Any] | None:
        if not chosen:
            return None
        return simple_summary([value for _, value in chosen], [dataset.item(query).image_id for query, _ in chosen])

    sufficient = [(one.query, answers.known[one.query, one.oracle]) for one in made if one.oracle is not None]
    foreign = [(one.query, answers.known[one.query, one.foreign]) for one in made if one.foreign is not None]
    hurt = [(query, value - answers.known[query, ()]) for query, value in foreign]
    figures: dict[str, Any] = {
        "pools with a sufficient pointer": over([(one.query, float(one.oracle is not None)) for one in made]),
        "oracle, where there is one": over(sufficient),
        "plain with two foreign demonstrations": over(foreign),
        "plain that foreign demonstrations spoil": over([(query, float(value < 0)) for query, value in hurt]),
        "plain that foreign demonstrations mend": over([(query, float(value > 0)) for query, value in hurt]),
    }
    for family in FAMILIES:
        of_family = [one for one in made if structures[one.query].family == family]
        figures[f"pools with a sufficient pointer, {family}"] = over(
            [(one.query, float(one.oracle is not None)) for one in of_family]
        )
        figures[f"oracle, where there is one, {family}"] = over(
            [(one.query, answers.known[one.query, one.oracle]) for one in of_family if one.oracle is not None]
        )
    return {name: value for name, value in figures.items() if value is not None}


def _batches(values: Sequence[Choices], size: int) -> list[Sequence[Choices]]:
    return [values[begin : begin + size] for begin in range(0, len(values), size)]


if __name__ == "__main__":
    main()
