"""An RL file of 1,000,000 candidates read as the trainer reads it, and an embedding matrix of 443,757 x 512 mapped into memory.

    python benchmarks/rl_load.py

Writes 50,000 queries of 20 candidates (pools of 64) as NDJSON and as one JSON object, made up from a seed, and reads each in a
process of its own, up to the training examples. Peak memory is that process's largest resident set, pages of mapped files among
it. Writes benchmarks/results/rl_load.json.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import orjson
from provenance import RESULTS, commit, machine

from leverplus.dataset import Dataset, DatasetInfo, Item, write_dataset
from leverplus.embeddings import Block, EmbeddingManifest, Embeddings
from leverplus.files import write_json
from leverplus.fingerprint import Fingerprint
from leverplus.ids import ItemId
from leverplus.metric import metric_fingerprint
from leverplus.rewards import RewardConfig
from leverplus.rl_data import Candidate, QueryRecord, read, write

QUERIES, CANDIDATES, POOL, SHOTS = 50_000, 20, 64, 2
ROWS, WIDTH, TOUCHED = 443_757, 512, 1_000
ANSWERS = ["red", "a dog", "two", "2", "yes", "surfing", "t-shirt", "on the table", "black and white", "1990"]


def made_up(queries: int, seed: int) -> Generator[QueryRecord]:
    random = Random(seed)
    for query in range(queries):
        pool = tuple(map(ItemId, random.sample(range(queries, 2 * queries), POOL)))
        pointers: set[tuple[ItemId, ...]] = set()
        while len(pointers) < CANDIDATES:
            pointers.add(tuple(random.sample(pool, SHOTS)))
        yield QueryRecord(ItemId(query), asked(query), pool, tuple(scored(pointer, random) for pointer in sorted(pointers)))


def asked(query: int) -> dict[str, Any]:
    question = f"What is the person number {query} in the picture holding?"
    return {"query_id": str(query), "question_id": f"q{query}", "image_id": f"i{query}", "question": question,
            "gt_answers_raw": ANSWERS, "gt_answers_norm": ANSWERS}  # fmt: skip


def scored(pointer: tuple[ItemId, ...], random: Random) -> Candidate:
    answer = random.choice(ANSWERS)
    accuracy = random.choice([0.0, 0.0, 0.3, 0.6, 0.9, 1.0])
    return Candidate(
        pointer,
        "sample",
        logprob_score=-random.random(),
        temperature=1.3,
        propensity=random.random() / 2 + 0.1,
        vqa_raw_generation=f" {answer}. Question: and then",
        vqa_pred_answer=answer,
        vqa_correct=int(accuracy > 0),
        vqa_acc_score=accuracy,
        vqa_eval_mode="file",
    )


def write_files(folder: Path, queries: int, seed: int) -> None:
    items = [
        Item(ItemId(number), "train", None, f"i{number}", f"q{number}", "what?", "red", ("red",) * 10)
        for number in range(2 * queries)
    ]
    write_dataset(folder / "dataset", DatasetInfo("made-up", "1", "CC0", "human"), items)
    fingerprint = Fingerprint(dataset=Dataset.open(folder / "dataset").fingerprint(), metric=metric_fingerprint())
    for name in ("rl.ndjson", "rl.json"):
        write(folder / name, made_up(queries, seed), fingerprint=fingerprint, meta={})


def resident_mib() -> dict[str, float]:
    """Own memory, and pages of files: shared with the page cache, and dropped when memory is short."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    found = {line[0]: int(line[1]) / 1024 for line in lines if line and line[0].startswith("Rss")}
    return {"own": round(found["RssAnon:"], 1), "files": round(found["RssFile:"], 1)}


def peak_mib() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def load(path: Path) -> dict[str, Any]:
    """Runs in a fresh process."""
    from pointer_trainer.batches import build_examples

    dataset = Dataset.open(path.parent / "dataset")
    before_mib = resident_mib()
    start, start_cpu = time.perf_counter(), time.process_time()
    data = read(path, dataset)
    read_s = time.perf_counter() - start
    read_mib = peak_mib()
    examples, counts = build_examples([data], RewardConfig())
    return {
        "file": path.name,
        "file_mib": round(path.stat().st_size / 2**20, 1),
        "queries": len(examples),
        "candidates": counts.candidates_used,
        "seconds": round(time.perf_counter() - start, 2),
        "processor_seconds": round(time.process_time() - start_cpu, 2),
        "seconds_of_reading": round(read_s, 2),
        "resident_before_mib": before_mib,
        "peak_after_reading_mib": read_mib,
        "peak_mib": peak_mib(),
    }


def map_embeddings(folder: Path) -> dict[str, Any]:
    """Runs in a fresh process."""
    before_mib = resident_mib()
    start = time.perf_counter()
    embeddings = Embeddings.open(folder / "embeddings", verify=False)
    opened_s, opened_mib = time.perf_counter() - start, resident_mib()
    ids = np.random.default_rng(0).choice(ROWS, TOUCHED, replace=False)
    touched = embeddings.query[ids]
    return {
        "shape": list(embeddings.query.shape),
        "file_mib": round((folder / "embeddings" / "embeddings.safetensors").stat().st_size / 2**20, 1),
        "seconds_to_open": round(opened_s, 4),
        "resident_before_mib": before_mib,
        "resident_opened_mib": opened_mib,
        "rows_touched": len(touched),
        "resident_after_touching_mib": resident_mib(),
    }


def write_embeddings(folder: Path, seed: int) -> None:
    rows = np.random.default_rng(seed).standard_normal((ROWS, WIDTH), dtype=np.float32)
    manifest = EmbeddingManifest({"name": "made up"}, "0" * 64, (Block("joint", 0, WIDTH),), WIDTH, ROWS, "same", "encoders")
    Embeddings(rows, rows, manifest).save(folder / "embeddings")


CHILDREN: dict[str, Callable[[Path], dict[str, Any]]] = {"load": load, "map": map_embeddings}


def in_a_process(task: str, path: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", task, str(path)]
    return orjson.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=QUERIES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        task, path = arguments.child
        sys.stdout.buffer.write(orjson.dumps(CHILDREN[task](Path(path))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder, arguments.queries, arguments.seed)
        loads = [in_a_process("load", folder / each) for each in ("rl.ndjson", "rl.json")]
        for each in loads:
            print(f"{each['file']}: {each['candidates']:,} candidates in {each['seconds']} s, peak {each['peak_mib']:,.0f} MiB")
        write_embeddings(folder, arguments.seed)
        mapped = in_a_process("map", folder)
        print(
            f"embeddings {mapped['shape']}, {mapped['file_mib']:,.0f} MiB; resident [MiB] before "
            f"{mapped['resident_before_mib']}, opened {mapped['resident_opened_mib']}, after {mapped['rows_touched']:,} rows "
            f"{mapped['resident_after_touching_mib']}"
        )
    command = f"python benchmarks/rl_load.py --queries {arguments.queries} --seed {arguments.seed}"
    content = {"command": command, "seed": arguments.seed, "machine": machine(), "commit": commit()}
    write_json(RESULTS / "rl_load.json", {**content, "loads": loads, "embeddings": mapped})


if __name__ == "__main__":
    sys.exit(main())
