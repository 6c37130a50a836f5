"""What the scorer's engine does at Qwen2.5-VL-3B's shape on a GPU, beside transformers' `generate` and the arithmetic's floor.

    python benchmarks/scorer_gpu.py [--tiny] [--queries 100] [--out benchmarks/results/scorer_gpu.json]

Weights are random: shapes decide what a pointer costs. 100 queries with 20 two-shot pointers each, once over one pool of 64 items
and once over each query's own 64 of 9,009; photographs' size (480 × 640 JPEG files, decoded and preprocessed within the time),
five tokens forced, caches empty at the start, filling counts. Then how many answers differ from those of transformers'
`generate`, with these weights and with assets/in-context-vlm. `--all-gpus`: a process on each scores the first workload, all at
the same time.
torch, transformers and our sources are all it needs. `--tiny` runs the code paths with a small shape, on a processor too.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from provenance import RESULTS, ROOT, commit
from scorer_agreement import agreement
from scorer_shape import PER_QUERY, POOL, Workload, build_model, draw_workload, floors, write_images
from stock_generate import stock_texts
from torch import multiprocessing
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from leverplus.prompts import SHORT_ANSWER
from vqa_scorer.engines import ScoringPrompt
from vqa_scorer.engines.decoding import GenerationArguments
from vqa_scorer.engines.pixels import PixelReader
from vqa_scorer.engines.processor import ImageTextProcessor, load_processor
from vqa_scorer.engines.transformers import TransformersEngine

VLM = ROOT / "assets" / "in-context-vlm"
NEW_TOKENS, ITEMS = 5, 9_009


@dataclass(frozen=True)
class Bench:
    """A model with its processor on one device, and where its images lie."""

    model: Any
    processor: Any
    device: str
    folder: Path
    batch_size: int

    @staticmethod
    def build(device: str, folder: Path, batch_size: int, *, tiny: bool) -> Bench:
        small = load_processor(VLM)
        processor = ImageTextProcessor(Qwen2VLImageProcessorPil(), small.tokenizer, chat_template=small.chat_template)
        processor.tokenizer.padding_side = "left"
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        return Bench(build_model(processor.tokenizer, device, dtype, tiny=tiny), processor, device, folder, batch_size)

    def engine(self, beams: int) -> TransformersEngine:
        """With empty caches."""
        engine = TransformersEngine(VLM, arguments=GenerationArguments(NEW_TOKENS, beams, 0.0), batch_size=self.batch_size)
        engine.attach(self.model, self.processor)
        return engine

    def tokens_of(self, prompts: Sequence[ScoringPrompt]) -> int:
        engine = self.engine(1)
        engine.generate(prompts)
        return engine.counts().tokens

    def seconds(self, work: Callable[[], Any]) -> float:
        self.synchronise()
        started = time.perf_counter()
        work()
        self.synchronise()
        return time.perf_counter() - started

    def synchronise(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)

    def warm_up(self, beams: int) -> None:
        """Kernels are chosen and memory is reserved before the clock starts; the images are others."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            paths = write_images(Path(folder), POOL)
            self.engine(beams).generate(
                draw_workload(paths[:32], paths[32:50], own_pools=False, seed=9).prompts[: self.batch_size]
            )


def ours(bench: Bench, workload: Workload, what: str, beams: int) -> dict[str, Any]:
    bench.warm_up(beams)
    engine = bench.engine(beams)
    spent = bench.seconds(lambda: engine.generate(workload.prompts))
    row = {"what": what, "beams": beams, "pointers": len(workload.prompts), "images": workload.images, "seconds": round(spent, 2)}
    return {**row, "pointers_per_s": round(len(workload.prompts) / spent, 2)}


def stock(bench: Bench, workload: Workload, what: str, beams: int, size: int) -> dict[str, Any]:
    """transformers' own processor and `generate` on one batch, after a few prompts for warming up."""
    row: dict[str, Any] = {"what": what, "beams": beams, "batch": size}

    def work(prompts: int) -> None:
        some = workload.prompts[:prompts]
        stock_texts(bench.model, bench.processor, SHORT_ANSWER, some, beams=beams, new_tokens=NEW_TOKENS, forced=True)

    try:
        work(min(size, 4))
        return {**row, "pointers_per_s": round(size / bench.seconds(lambda: work(size)), 2)}
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return {**row, "pointers_per_s": None, "why": "out of memory"}


def matrix_rate(bench: Bench) -> float:
    """FLOP/s of a large matrix product."""
    size = 8192 if bench.device != "cpu" else 1024
    left, right = (torch.randn(size, size, device=bench.device, dtype=bench.model.dtype) for _ in range(2))
    for _ in range(3):
        torch.matmul(left, right)
    return 10 * 2 * size**3 / bench.seconds(lambda: [torch.matmul(left, right) for _ in range(10)])


def _on_its_own_gpu(number: int, arguments: argparse.Namespace, folder: str, ready: Any, made: Any) -> None:
    torch.cuda.set_device(number)
    bench = Bench.build(f"cuda:{number}", Path(folder), arguments.batch_size, tiny=arguments.tiny)
    paths = sorted(Path(folder).glob("*.jpg"), key=lambda path: int(path.stem))[: POOL + arguments.queries]
    workload = draw_workload(paths[:POOL], paths[POOL:], own_pools=False, seed=number)
    bench.warm_up(1)
    engine = bench.engine(1)
    ready.wait()
    spent = bench.seconds(lambda: engine.generate(workload.prompts))
    made.put((number, len(workload.prompts), spent, engine.counts().seconds))


def on_all_gpus(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    count = torch.cuda.device_count()
    context = multiprocessing.get_context("spawn")
    ready, made = context.Barrier(count), context.Queue()
    started = [
        context.Process(target=_on_its_own_gpu, args=(number, arguments, str(folder), ready, made)) for number in range(count)
    ]
    for process in started:
        process.start()
    found = sorted(made.get(timeout=500) for _ in range(count))
    for process in started:
        process.join()
    rates = [pointers / seconds for _, pointers, seconds, _ in found]
    total = sum(pointers for _, pointers, _, _ in found) / max(seconds for _, _, seconds, _ in found)
    row: dict[str, Any] = {"what": f"ours, a process on each of {count} GPUs", "beams": 1}
    row["each"] = [round(rate, 2) for rate in rates]
    row["phases_s"] = [{name: round(value, 2) for name, value in phases.items()} for *_, phases in found]
    return {**row, "pointers_per_s": round(total, 2)}


def parsed(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--stock-batch", type=int, default=64)
    parser.add_argument("--agreement", type=int, default=64, help="prompts whose answers are compared; 0 for none")
    parser.add_argument("--all-gpus", action="store_true", help="only a process on each GPU")
    parser.add_argument("--out", type=Path, default=RESULTS / "scorer_gpu.json")
    parser.add_argument("--commit", help="of the sources, where git is not at hand")
    return parser.parse_args(given)


def print_table(rows: Sequence[dict[str, Any]], result: dict[str, Any]) -> None:
    print(f"\n{result['device']}, {result['torch']}, pointers/s")
    for row in rows:
        size = f"batch {row['batch']}" if "batch" in row else ""
        print(f"  {row['what']:<34} {row['beams']} beam(s) {size:<10} {row['pointers_per_s'] or row.get('why')}")
    for workload, found in result.get("floors_pointers_per_s", {}).items():
        print(f"  floor, {workload}: " + ", ".join(f"{value} {what}" for what, value in found.items()))
    for what, found in result.get("agreement", {}).items():
        shares = ", ".join(f"{pair} {share:.2%}" for pair, share in found["differ"].items())
        print(f"  texts that differ of {found['prompts']}, {what}: {shares}")


def main() -> None:
    arguments = parsed(sys.argv[1:])
    rows: list[dict[str, Any]] = []

    def report(row: dict[str, Any]) -> None:
        rows.append(row)
        print(json.dumps(row), flush=True)

    result: dict[str, Any] = {
        "command": shlex.join(["python", *sys.argv]),
        "commit": arguments.commit or commit(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_images(folder, arguments.items + arguments.queries)
        queries = paths[-arguments.queries :]
        shared = draw_workload(paths[:POOL], queries, own_pools=False)
        if arguments.all_gpus:
            report(on_all_gpus(arguments, folder))
        else:
            own = draw_workload(paths[: arguments.items], queries, own_pools=True)
            device = "cuda:0" if torch.cuda.is_available() else "cpu"
            bench = Bench.build(device, folder, arguments.batch_size, tiny=arguments.tiny)
            for what, size in (("stock, one at a time", 1), ("stock, batched", arguments.stock_batch)):
                for beams in (1, 3):
                    report(stock(bench, shared, what, beams, size))
            if device != "cpu":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            report(ours(bench, shared, "ours, one pool of 64", 1))
            report(ours(bench, shared, "ours, one pool of 64", 3))
            report(ours(bench, own, f"ours, own pools of {arguments.items}", 1))
            if device != "cpu":
                result["peak_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
            tokens = bench.tokens_of(shared.prompts[:1])
            pixels = PixelReader(bench.processor.image_processor, torch.device(device))
            patches = pixels.patch_count(pixels.read(paths[0]))
            rate = matrix_rate(bench)
            result |= {"tokens": tokens, "matrix_tflops": round(rate / 1e12, 1)}
            result["floors_pointers_per_s"] = {
                what: floors(bench.model, load, tokens=tokens, patches=patches, rate=rate)
                for what, load in (("one pool of 64", shared), (f"own pools of {arguments.items}", own))
            }
            if arguments.agreement:
                one_a_query = shared.prompts[::PER_QUERY][: arguments.agreement]
                result["agreement"] = agreement(bench.model, bench.processor, one_a_query, VLM, folder)
    print_table(rows, result)
    arguments.out.write_text(json.dumps({**result, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
