"""Scores every pointer of length 0, 1 and 2 over the pools of many queries of `invented-words`: assets/reward-table.

    python benchmarks/reward_table.py --out assets/reward-table

Queries are the first 300 of val, the first 1,000 of test and, to train on, the first 4,000 of train. Of any ten in a row four are
naming, four pair, one operator and one plain, so the first ones are stratified as the split is. Pools are those of the default
policy: 64 random items of train. Answers are greedy. The speed of a warm sample is printed first, with the time that the whole
will take; then a sample is compared with the scorer's own engine (float32, on the processor). What a killed run had done is not
done again.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from provenance import ROOT, commit
from reward_scorer import NONE, Precision, SharedPrefixScorer
from reward_table_readme import write_readme

from leverplus.dataset import Dataset
from leverplus.dataset.invented_words import generate
from leverplus.errors import InvalidInput
from leverplus.files import atomic_file, remove_folder, write_json
from leverplus.fingerprint import digest
from leverplus.images import read_image
from leverplus.metric import extract_answer, metric_fingerprint, score_answer
from leverplus.pools import PoolPolicy, Pools
from leverplus.prompts import SHORT_ANSWER, Shot
from leverplus.reward_table import FORMAT, all_pointers, pools_digest, write_codes
from vqa_scorer.engines import ScoringPrompt, all_texts, processor
from vqa_scorer.engines.decoding import GenerationArguments
from vqa_scorer.engines.transformers import TransformersEngine

Ids = npt.NDArray[np.int64]
Codes = npt.NDArray[np.uint8]

LEVELS = (0.0, 0.3, 0.6, 0.9, 1.0)
"""VQA accuracies of a prediction that 0, 1, 2, 3, and 4 or more of ten annotators gave."""
QUERIES = {"val": 300, "test": 1000, "train": 4000}
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bfloat16")


@dataclass(frozen=True)
class Work:
    """What is scored. `queries` [Q] over all splits and `pools` [Q, K] are ItemIds; `demonstrations` those of all pools."""

    dataset: Dataset
    splits: dict[str, list[int]]
    queries: list[int]
    pools: Ids
    demonstrations: list[int]

    @classmethod
    def plan(cls, dataset: Dataset, counts: dict[str, int], policy: PoolPolicy) -> Work:
        splits = {split: [int(one) for one in dataset.split_ids(split)[:count]] for split, count in counts.items() if count}
        queries = [query for ids in splits.values() for query in ids]
        drawn = Pools(dataset, None, policy)
        pools = np.stack([drawn.pool(query) for query in queries])
        return cls(dataset, splits, queries, pools, np.unique(pools).tolist())

    def pointers(self, rows: Sequence[int]) -> Ids:
        """Numbers [rows · N, 3] of demonstrations and query for every pointer of these queries, in the table's order."""
        order = all_pointers(self.pools.shape[1])
        numbers = np.searchsorted(np.asarray(self.demonstrations), self.pools[list(rows)])
        padded = np.concatenate([numbers, np.full((len(rows), 1), NONE)], axis=1)  # NONE, the last place, stays NONE
        shown = padded[:, order]
        asked = np.broadcast_to(np.asarray(rows)[:, None, None], (*shown.shape[:2], 1))
        return np.concatenate([shown, asked], axis=2).reshape(-1, 3)

    def prompt(self, pointer: Sequence[int]) -> ScoringPrompt:
        shown = [self.demonstrations[number] for number in pointer[:2] if number != NONE]
        shots = tuple(
            Shot(self.dataset.image_path(one), self.dataset.item(one).question, self.dataset.item(one).answer) for one in shown
        )
        query = self.queries[pointer[2]]
        return ScoringPrompt(shots, Shot(self.dataset.image_path(query), self.dataset.item(query).question))

    def code(self, row: int, text: str) -> int:
        """Index into LEVELS of a generated text's accuracy."""
        query = self.dataset.item(self.queries[row])
        score = score_answer(extract_answer(text), query.answers)
        if score.mode != "file" or score.accuracy not in LEVELS:
            raise InvalidInput(f"item {query.item_id} has {len(query.answers)} answers, the table's levels are those of ten")
        return LEVELS.index(score.accuracy)

    def codes(self, rows: Ids, packed: Ids, scorer: SharedPrefixScorer) -> Codes:
        """Codes [n] of packed answers [n] to the queries `rows` [n]; each different one is judged once."""
        written, which = np.unique(packed, return_inverse=True)
        texts = [scorer.text(one) for one in written.tolist()]
        pairs, places = np.unique(rows * len(texts) + which, return_inverse=True)
        judged = [self.code(pair // len(texts), texts[pair % len(texts)]) for pair in pairs.tolist()]
        return np.asarray(judged, dtype=np.uint8)[places]


def chunks(work: Work, scorer: SharedPrefixScorer, size: int) -> Iterator[list[int]]:
    """Rows of queries of one layout, `size` at a time: their pointers make few, large batches."""
    by_layout: dict[Any, list[int]] = {}
    for row, layout in enumerate(scorer.queries.layouts):
        by_layout.setdefault(layout, []).append(row)
    for rows in by_layout.values():
        yield from (rows[begin : begin + size] for begin in range(0, len(rows), size))


def measure_rate(work: Work, scorer: SharedPrefixScorer, rows: list[int], pointers: int, batch_tokens: int) -> float:
    """Pointers a second on what the first chunk begins with, the second time."""
    sample = work.pointers(rows)[:pointers]
    scorer.answers(sample, batch_tokens=batch_tokens)
    began = time.perf_counter()
    scorer.answers(sample, batch_tokens=batch_tokens)
    return len(sample) / (time.perf_counter() - began)


def compare(work: Work, scorer: SharedPrefixScorer, sample: Ids, expected: list[str], batch_tokens: int) -> dict[str, Any]:
    """How often text and reward of a sample differ from the engine's."""
    texts = [scorer.text(int(one)) for one in scorer.answers(sample, batch_tokens=batch_tokens)]
    rows = sample[:, 2].tolist()
    rewards = sum(work.code(r, a) != work.code(r, b) for r, a, b in zip(rows, texts, expected, strict=True))
    differing = sum(a != b for a, b in zip(texts, expected, strict=True))
    return {"pointers": len(sample), "texts_differing": differing, "rewards_differing": rewards}


def score_all(work: Work, scorer: SharedPrefixScorer, progress: Path, arguments: argparse.Namespace) -> tuple[Codes, float, int]:
    """Codes [Q, N], the seconds that this run took, and how many it scored; chunks that lie in `progress` are read instead."""
    count = len(all_pointers(work.pools.shape[1]))
    codes = np.zeros((len(work.queries), count), dtype=np.uint8)
    began, done, made = time.perf_counter(), 0, 0
    for number, rows in enumerate(chunks(work, scorer, arguments.chunk)):
        path = progress / f"{number:04d}.npy"
        if path.is_file():
            codes[rows] = np.load(path, allow_pickle=False)
        else:
            pointers = work.pointers(rows)
            packed = scorer.answers(pointers, batch_tokens=arguments.batch_tokens)
            codes[rows] = work.codes(pointers[:, 2], packed, scorer).reshape(len(rows), count)
            with atomic_file(path) as stream:
                np.save(stream, codes[rows], allow_pickle=False)
            made += len(rows)
        done += len(rows)
        seconds = time.perf_counter() - began
        if number % 8 == 0 or done == len(work.queries):
            print(f"{done} of {len(work.queries)} queries, {made * count / seconds:.0f} pointers/s", flush=True)
    return codes, time.perf_counter() - began, made * count


def pixels_digest(dataset: Dataset) -> str:
    """Hex sha256 over the decoded pixels of all items' images: items.jsonl does not name them."""
    total = hashlib.sha256()
    for path in dict.fromkeys(dataset.image_path(item.item_id) for item in dataset.items):
        total.update(read_image(path).tobytes())
    return total.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vlm", type=Path, default=ROOT / "assets" / "in-context-vlm")
    parser.add_argument("--dataset", type=Path, default=ROOT / ".leverplus/datasets/invented-words", help="made if missing")
    parser.add_argument("--out", type=Path, required=True)
    for split, count in QUERIES.items():
        parser.add_argument(f"--{split}", type=int, default=count, help="queries")
    parser.add_argument("--limit", type=int, help="queries a split at most, for a trial")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--batch-tokens", type=int, help="computed in one pass at most [2^18 on a GPU, 2^12 on a processor]")
    parser.add_argument("--chunk", type=int, default=64, help="queries that are scored together")
    parser.add_argument("--sample", type=int, help="pointers of the timed sample [65,536 on a GPU, 256 on a processor]")
    parser.add_argument("--check", type=int, default=2000, help="pointers to compare with the scorer's engine")
    parser.add_argument("--compare", action="store_true", help="time and compare the other precisions too")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--commit", help="of this checkout, where git is not to be had")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    # The fingerprint names the image processor: PIL's, as where the scorer runs without torchvision, whatever this host has.
    processor.torchvision_works = lambda: False
    on_gpu = arguments.device == "cuda" or (arguments.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda" if on_gpu else "cpu")
    arguments.batch_tokens = arguments.batch_tokens or (2**18 if on_gpu else 2**12)

    if not arguments.dataset.exists():
        generate(arguments.dataset)
    dataset = Dataset.open(arguments.dataset)
    policy = PoolPolicy()
    limit = len(dataset.items) if arguments.limit is None else arguments.limit
    work = Work.plan(dataset, {split: min(getattr(arguments, split), limit) for split in QUERIES}, policy)
    generation = GenerationArguments()
    engine = TransformersEngine(arguments.vlm, device="cpu", dtype="float32", batch_size=64, threads=arguments.threads)
    engine.load()
    total = len(work.queries) * len(all_pointers(policy.k))
    print(f"{len(work.queries)} queries, {len(work.demonstrations)} demonstrations, {total} pointers", flush=True)

    def scorer_of(precision: Precision) -> tuple[SharedPrefixScorer, float]:
        scorer = SharedPrefixScorer(
            arguments.vlm, SHORT_ANSWER, device=device, precision=precision, max_new_tokens=generation.max_new_tokens
        )
        scorer.load(dataset, work.demonstrations, work.queries)
        first = next(chunks(work, scorer, arguments.chunk))
        rate = measure_rate(work, scorer, first, arguments.sample or (65536 if on_gpu else 256), arguments.batch_tokens)
        print(f"{precision}: {rate:.0f} pointers/s on a warm sample, the whole in {total / rate:.0f} s", flush=True)
        return scorer, rate

    began = time.perf_counter()
    scorer, rate = scorer_of(arguments.precision)
    print(f"ready after {time.perf_counter() - began:.0f} s", flush=True)
    agreement: dict[str, Any] = {}
    drawn = np.random.default_rng(0).integers(0, [len(work.queries), len(all_pointers(policy.k))], (arguments.check, 2))
    sample = np.concatenate([np.empty((0, 3), np.int64), *(work.pointers([row])[[column]] for row, column in drawn.tolist())])
    expected = all_texts(engine.generate([work.prompt(pointer) for pointer in sample.tolist()]))
    if arguments.check:
        agreement[arguments.precision] = compare(work, scorer, sample, expected, arguments.batch_tokens)
        print(f"against the scorer's engine: {agreement}", flush=True)
    if arguments.compare and arguments.check:
        for precision in PRECISIONS:
            if precision == arguments.precision:
                continue
            other, _ = scorer_of(precision)
            agreement[precision] = compare(work, other, sample, expected, arguments.batch_tokens)
            print(f"against the scorer's engine: {precision} {agreement[precision]}", flush=True)
            del other
        torch.set_float32_matmul_precision("high" if arguments.precision == "tf32" else "highest")

    decides = {
        "dataset": {**dataset.fingerprint(), "pixels_sha256": pixels_digest(dataset)},
        "pool": Pools(dataset, None, policy).fingerprint(),
        "generation": engine.generation_fingerprint(),
        "metric": metric_fingerprint(),
        "precision": arguments.precision,
    }
    progress = arguments.out / f".progress-{digest([decides, work.splits, arguments.chunk])[:12]}"
    codes, seconds, scored = score_all(work, scorer, progress, arguments)
    splits: dict[str, Any] = {}
    begin = 0
    for split, ids in work.splits.items():
        rows = slice(begin, begin + len(ids))
        begin += len(ids)
        name = f"rewards-{split}.npy.xz"
        sha256 = write_codes(arguments.out / name, codes[rows])
        pools = pools_digest(work.pools[rows])
        splits[split] = {"file": name, "sha256": sha256, "pools_sha256": pools, "query_ids": ids}
    made = {
        "command": shlex.join(["python", *sys.argv]),
        "commit": arguments.commit or (commit() if shutil.which("git") else None),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "pointers": total,
        "seconds": round(seconds, 1),
        "scored_in_these_seconds": scored,
        "pointers_per_s_of_a_warm_sample": round(rate),
        "compared_with_the_engine": agreement,
    }
    header = {"format": FORMAT, **decides, "pool_size": policy.k, "levels": list(LEVELS), "splits": splits, "made": made}
    write_json(arguments.out / "table.json", header)
    write_readme(arguments.out)
    remove_folder(progress)


if __name__ == "__main__":
    main()
