"""Accuracy of the small VLM on easy-vqa's test questions with 0, 1 and 2 random demonstrations.

    python benchmarks/evaluate_small_vlm.py --model assets/small-vlm --out benchmarks/results/small_vlm.json

Everything as a user of transformers would do it: from_pretrained, the processor, left-padded batches through model.generate. The
demonstrations are random training items, drawn anew for each question from its number and the seed; k shots are the last k of
them. An answer counts when the generated text, stripped, equals easy-vqa's one answer.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from small_vlm_data import Split, draw_shots, prompt_text, read_split
from torch.utils.data import DataLoader, Dataset
from transformers import Qwen2_5_VLForConditionalGeneration

from leverplus.prompts import SHORT_ANSWER, Shot
from vqa_scorer.engines.processor import load_processor

KINDS = {"yes or no": {"yes", "no"}, "shape": {"circle", "rectangle", "triangle"}}


class PromptBatches(Dataset[Any]):
    """Batch i as the processor's tensors; workers of a DataLoader prepare them side by side."""

    def __init__(
        self, processor: Any, train: Split, test: Split, items: Sequence[int], shots: int, batch_size: int, seed: int
    ) -> None:
        self.processor, self.train, self.test = processor, train, test
        self.batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
        self.shots, self.seed = shots, seed

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Any:
        texts: list[str] = []
        pictures: list[Image.Image] = []
        for item in self.batches[number]:
            drawn = draw_shots(self.train, 2, f"{self.seed}-{item}")
            shown = drawn[len(drawn) - self.shots :]
            query = Shot(self.test.image_paths[self.test.image_ids[item]], self.test.questions[item])
            texts.append(prompt_text(self.processor, shown, query))
            for shot in (*shown, query):
                with Image.open(shot.image) as picture:
                    pictures.append(picture.convert("RGB"))
        return self.processor(text=texts, images=pictures, padding=True, return_tensors="pt")


@torch.inference_mode()
def generate_answers(model: Any, processor: Any, batches: PromptBatches, workers: int) -> list[str]:
    """Greedy answers in the order of the batches."""
    answers: list[str] = []
    for inputs in DataLoader(batches, batch_size=None, num_workers=workers):
        generated = model.generate(**inputs.to(model.device), max_new_tokens=5, do_sample=False)
        answers += processor.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def accuracy_report(answers: list[str], truth: list[str], seconds: float) -> dict[str, Any]:
    """Shares of exact matches, over all questions and by the kind of answer."""
    right = [said.strip() == meant for said, meant in zip(answers, truth, strict=True)]
    kinds: dict[str, list[bool]] = {}
    for correct, meant in zip(right, truth, strict=True):
        kind = next((name for name, members in KINDS.items() if meant in members), "colour")
        kinds.setdefault(kind, []).append(correct)
    return {
        "accuracy": round(sum(right) / len(right), 5),
        "right": sum(right),
        "by_kind": {kind: round(sum(marks) / len(marks), 5) for kind, marks in sorted(kinds.items())},
        "seconds": round(seconds, 1),
        "prompts_per_second": round(len(right) / seconds, 1),
    }


def checked_out_commit() -> str | None:
    """The checked-out commit, None outside a git checkout."""
    asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() if asked.returncode == 0 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("assets/small-vlm"))
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 1, 2], choices=[0, 1, 2])
    parser.add_argument("--limit", type=int, help="evenly spaced test questions instead of all")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1, help="torch threads on a CPU")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare prompts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commit", default=checked_out_commit(), help="commit to record, where git cannot tell")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    processor = load_processor(arguments.model)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(arguments.model, dtype=getattr(torch, arguments.dtype))
    model = model.to(arguments.device).eval()
    train, test = read_split("train"), read_split("test")
    total = len(test.questions)
    count = min(arguments.limit or total, total)
    items = [i * total // count for i in range(count)]
    truth = [test.answers[i] for i in items]
    commonest, times = Counter(truth).most_common(1)[0]
    by_shots: dict[str, Any] = {}
    for shots in arguments.shots:
        batches = PromptBatches(processor, train, test, items, shots, arguments.batch_size, arguments.seed)
        started = time.monotonic()
        answers = generate_answers(model, processor, batches, arguments.workers)
        by_shots[str(shots)] = accuracy_report(answers, truth, time.monotonic() - started)
        print(f"{shots} shots: {json.dumps(by_shots[str(shots)])}", flush=True)
    report = {
        "command": "python " + " ".join(sys.argv),
        "seed": arguments.seed,
        "commit": arguments.commit,
        "machine": {
            "device": torch.cuda.get_device_name() if arguments.device.startswith("cuda") else platform.machine(),
            "cpus": os.cpu_count(),
            "threads": arguments.threads,
            "dtype": arguments.dtype,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "image_processor": type(processor.image_processor).__name__,
        },
        "data": {"name": "easy-vqa 1.0, test", "questions": count},
        "prompt": SHORT_ANSWER.fingerprint(),
        "commonest_answer": {"answer": commonest, "accuracy": round(times / count, 5)},
        "by_shots": by_shots,
    }
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["commonest_answer"]))


if __name__ == "__main__":
    main()
