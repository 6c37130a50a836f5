"""A scorer process whose engine keeps a record of its own: what it was asked for, on disk before it answers.

    python benchmarks/recorded_scorer.py --record FILE --shortest-s 0.01 --longest-s 0.1

Everything but the VLM is the real service, with its settings in the environment. No two answers of the engine are alike, in
no process, so that a score that was generated again can be told from the first. The dataset is one whose questions are item
ids (`write_numbered`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from leverplus.data_root import DataRoot
from leverplus.dataset import DatasetInfo, Item, write_dataset
from leverplus.ids import ItemId
from leverplus.web import observe, read_settings, serve
from vqa_scorer.app import create_app
from vqa_scorer.engines import ScoringPrompt
from vqa_scorer.settings import ScorerSettings

ANSWER = "red"


def write_numbered(root: DataRoot, name: str, items: int) -> None:
    """A dataset of `items` items: the question of each is its id, its answer ANSWER, ten times."""
    folder = root.dataset(name)
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (8, 8), ANSWER).save(folder / "images" / "all.png")
    write_dataset(
        folder,
        DatasetInfo(name, "1", "CC0", "human"),
        [
            Item(ItemId(number), "train", "images/all.png", "all", f"q{number}", str(number), ANSWER, (ANSWER,) * 10)
            for number in range(items)
        ],
    )


class RecordedEngine:
    """Takes between `shortest_s` and `longest_s` for a batch. One line of the record a batch, written when it begins."""

    has_probabilities = True
    batch_size = 8

    def __init__(self, record: Path, *, shortest_s: float, longest_s: float) -> None:
        self._record = record
        self._limits = (shortest_s, longest_s)

    def load(self) -> None:
        self._record.touch()

    def generate(self, prompts: Sequence[ScoringPrompt]) -> list[str]:
        self._begin("text", prompts)
        return [f"{ANSWER} {uuid.uuid4().hex}" for _ in prompts]

    def answer_probabilities(self, prompts: Sequence[ScoringPrompt], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        self._begin("probabilities", prompts)
        return [[random.random() for _ in own] for own in answers]

    def _begin(self, kind: str, prompts: Sequence[ScoringPrompt]) -> None:
        keys = [[int(prompt.query.question), [int(shot.question) for shot in prompt.demonstrations]] for prompt in prompts]
        line = json.dumps({"pid": os.getpid(), "at": time.time(), "kind": kind, "keys": keys}) + "\n"
        with self._record.open("a") as stream:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())
        time.sleep(random.uniform(*self._limits))

    def generation_fingerprint(self) -> dict[str, Any]:
        return {"vlm": {"model_type": "recorded", "weights_sha256": None}}

    def reserved_texts(self) -> frozenset[str]:
        return frozenset()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--shortest-s", type=float, required=True)
    parser.add_argument("--longest-s", type=float, required=True)
    arguments = parser.parse_args()
    engine = RecordedEngine(arguments.record, shortest_s=arguments.shortest_s, longest_s=arguments.longest_s)
    settings = read_settings(ScorerSettings, os.environ)
    observe("vqa_scorer", settings)
    serve(create_app(settings, engine), host=settings.host, port=settings.port)


if __name__ == "__main__":
    main()
