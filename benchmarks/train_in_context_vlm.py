"""Train the VLM of assets/in-context-vlm from scratch to answer from its demonstrations.

    python benchmarks/train_in_context_vlm.py --out /tmp/m --steps 20000 --minutes 9

Each example is the scorer's own prompt (leverplus.prompts.SHORT_ANSWER through the chat template) with 0 to 4 demonstrations.
Languages, words and the meaning of frames are drawn anew for every prompt (in_context_vlm/episodes.py), so that the model can
only learn to read them off the prompt; the languages of the dataset are never shown. English and easy-vqa's training questions
have fixed answers and teach it to see. The loss is taken on every answer of the prompt that what stands before it makes knowable.

Pictures are rendered by the dataset's own generator under other seeds. Watched while training: fresh episodes with pictures that
are not trained on, and easy-vqa's last 200 training pictures. No dataset folder and no test split is read here.

Writes a transformers model directory (bf16 safetensors, tokenizer, processor) and in it training.json with the curve.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from in_context_vlm import IMAGE_SIDE
from in_context_vlm.easy_questions import read_split
from in_context_vlm.episodes import Mix
from in_context_vlm.model import save_model, small_config
from in_context_vlm.sides import assert_same_as_processor, build_sides
from in_context_vlm.tokenizer import build_tokenizer
from in_context_vlm.training import Training
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vqa_scorer.engines.processor import ImageTextProcessor


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="model directory to write")
    parser.add_argument("--init", type=Path, help="model directory to start from instead of random weights")
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--minutes", type=float, default=9.0, help="stop at this time even if steps are left")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--lr", type=float, default=1e-3, help="peak of AdamW's")
    parser.add_argument("--seeing-steps", type=int, default=2500, help="of the vision tower alone, before all else")
    parser.add_argument("--seeing-batch", type=int, default=2048, help="pictures a step of these")
    parser.add_argument("--seeing-weight", type=float, default=0.1, help="of the same loss afterwards")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--intermediate", type=int, default=576)
    parser.add_argument("--key-value-heads", type=int, default=4)
    parser.add_argument("--vision-layers", type=int, default=4)
    parser.add_argument("--pictures", type=int, default=2000, help="rendered for each colour, shape and frame")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="processes that render")
    parser.add_argument("--report-seconds", type=float, default=25.0)
    parser.add_argument("--check-size", type=int, default=1024, help="episodes a check")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="file to save to after the seeing steps and at every report, and to continue from when it is there; a run that was "
        "interrupted in its seeing steps begins anew",
    )
    return parser.parse_args()


def main() -> None:
    arguments = read_arguments()
    torch.manual_seed(arguments.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = build_tokenizer(read_split("train"))
    square = IMAGE_SIDE * IMAGE_SIDE
    image_processor = Qwen2VLImageProcessorPil(size={"shortest_edge": square, "longest_edge": square})
    processor = ImageTextProcessor(image_processor, tokenizer, chat_template=tokenizer.chat_template)

    began = time.monotonic()
    training, held_out = build_sides(
        tokenizer,
        image_processor,
        device,
        per_cell=arguments.pictures,
        seed=arguments.seed,
        workers=arguments.workers,
    )
    print(f"pictures: {len(training.pictures.pixels)} in {time.monotonic() - began:.1f} s", flush=True)
    for shots in range(5):
        assert_same_as_processor(training, processor, training.source.draw(16, shots, Mix()))

    model: Any = Qwen2_5_VLForConditionalGeneration(
        small_config(
            tokenizer,
            layers=arguments.layers,
            intermediate=arguments.intermediate,
            key_value_heads=arguments.key_value_heads,
            vision_layers=arguments.vision_layers,
        )
    )
    if arguments.init:
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(arguments.init, dtype=torch.float32)
    model.to(device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters / 1e6:.2f} M parameters, {len(tokenizer)} tokens, {device}", flush=True)
    progress = Training(model, training, held_out, arguments).run()
    save_model(model, processor, arguments.out)
    report = {
        "arguments": {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()},
        "parameters": parameters,
        "vocabulary": len(tokenizer),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "seeing": progress.seeing_curve,
        "curve": progress.curve,
    }
    (arguments.out / "training.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
