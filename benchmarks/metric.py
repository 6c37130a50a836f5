"""Questions a second of the VQA accuracy, one prediction each, on one core, memory warm and the metric's cache cold.

    python benchmarks/metric.py --annotations <VQA annotation file>

Without annotations as many questions as VizWiz val has are made up. Writes benchmarks/results/metric.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import orjson
from provenance import RESULTS, commit, machine

from leverplus.dataset import majority_answer
from leverplus.files import write_json
from leverplus.metric import FLAVOURS, Flavour, normalise_answer, vqa_accuracy

QUESTIONS = 4319


def made_up(count: int) -> list[list[str]]:
    random = Random(0)
    words = ["red", "a dog", "two", "2", "yes", "no.", "t-shirt", "1,000", "dont know", "unanswerable", "black/white"]
    return [
        [random.choice(words) + random.choice(["", "", f" {random.randrange(500)}"]) for _ in range(10)] for _ in range(count)
    ]


def measure(human: list[list[str]], flavour: Flavour) -> dict[str, Any]:
    predictions = [majority_answer(answers) or "" for answers in human]
    runs: list[float] = []
    accuracies: list[float] = []
    for _ in range(5):
        normalise_answer.cache_clear()
        start = time.perf_counter()
        accuracies = [vqa_accuracy(prediction, answers, flavour) for prediction, answers in zip(predictions, human, strict=True)]
        runs.append(time.perf_counter() - start)
    median_s = sorted(runs)[len(runs) // 2]
    return {
        "seconds": median_s,
        "seconds_of_runs": runs,
        "questions_per_s": len(human) / median_s,
        "accuracy_of_commonest_answer": 100 * sum(accuracies) / len(accuracies),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--annotations", type=Path, help="an annotation file in VQA form, ten answers a question")
    arguments = parser.parse_args()
    source, human = "made up", made_up(QUESTIONS)
    if arguments.annotations is not None:
        source = arguments.annotations.name
        annotations = orjson.loads(arguments.annotations.read_bytes())["annotations"]
        human = [[entry["answer"] for entry in annotation["answers"]] for annotation in annotations]
    flavours = {flavour: measure(human, flavour) for flavour in FLAVOURS}
    for flavour, result in flavours.items():
        print(
            f"{flavour}: {len(human)} questions in {result['seconds']:.3f} s, {result['questions_per_s']:,.0f} questions/s; "
            f"commonest answer {result['accuracy_of_commonest_answer']:.2f} ({source})"
        )
    command = ["python", "benchmarks/metric.py", *(["--annotations", source] if arguments.annotations else [])]
    content = {"command": " ".join(command), "machine": machine(), "commit": commit(), "source": source}
    write_json(RESULTS / "metric.json", {**content, "questions": len(human), "flavours": flavours})


if __name__ == "__main__":
    sys.exit(main())
