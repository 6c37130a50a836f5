"""Train the small VLM of assets/small-vlm from scratch on easy-vqa's training questions.

    python benchmarks/train_small_vlm.py --out assets/small-vlm --steps 6000

Each example is the scorer's own prompt (leverplus.prompts.SHORT_ANSWER through the chat template) with 0, 1 or 2 random solved
items before the query; no demonstration shares the query's picture. The loss is taken on the query's answer and the end of the
turn, and on the demonstrations' answers, which costs nothing and teaches the model to see. Pictures are mirrored and shifted: the
ground is flat, so a cyclic shift that keeps the shape whole is a picture the generator could have drawn. The last 200 training
pictures are held out to watch progress; the test split is not touched here.

Writes a transformers model directory (bf16 safetensors, tokenizer, processor) and in it training.json with the loss curve.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from small_tokenizer import END_OF_TEXT, TURN_END, build_tokenizer
from small_vlm_data import (
    IGNORED,
    IMAGE_SIDE,
    PieceTable,
    Split,
    build_pieces,
    load_pixels,
    prompt_text,
    read_split,
    to_patches,
)
from small_vlm_model import FastForward, assert_same_as_stock, small_config
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from leverplus.prompts import SHORT_ANSWER, Shot
from vqa_scorer.engines.processor import ImageTextProcessor

HELD_OUT_IMAGES = 200
MAX_SHOTS = 2


@dataclass(frozen=True)
class TrainingData:
    """Everything a step needs, on the device."""

    pieces: PieceTable
    pixels: Tensor  # [images, 3, 56, 56] as the image processor normalises them
    shape_box: Tensor  # [images, 4] first row, last row, first column, last column of the drawn shape
    image_of_item: Tensor  # [items]
    items_of_image: Tensor  # [images, most items of an image], padded by repeating
    generator: torch.Generator

    def draw(self, queries: Tensor, shots: int, images: range) -> Tensor:
        """Random items [B, shots] whose pictures lie in `images` and are not the query's."""
        device = queries.device
        here = self.image_of_item[queries] - images.start
        offset = torch.randint(1, len(images), (len(queries), shots), device=device, generator=self.generator)
        image = (here[:, None] + offset) % len(images) + images.start
        column = torch.randint(0, self.items_of_image.shape[1], image.shape, device=device, generator=self.generator)
        return self.items_of_image[image, column]

    def patches(self, items: Tensor, augment: bool) -> Tensor:
        """Patches [items·16, 1176] of the items' pictures, in reading order."""
        image = self.image_of_item[items.flatten()]
        pixels = self.pixels[image]
        return to_patches(self._augmented(pixels, self.shape_box[image]) if augment else pixels)

    def _augmented(self, pixels: Tensor, box: Tensor) -> Tensor:
        count, side = len(pixels), torch.arange(IMAGE_SIDE, device=pixels.device)
        room = torch.rand(count, 2, device=pixels.device, generator=self.generator)
        free = IMAGE_SIDE - (box[:, 1::2] - box[:, ::2] + 1)
        shift = (room * (free + 1)).long().clamp(max=IMAGE_SIDE) - box[:, ::2]
        rows, columns = ((side - shift[:, axis, None]) % IMAGE_SIDE for axis in (0, 1))
        mirror = torch.rand(count, 1, device=pixels.device, generator=self.generator) < 0.5
        columns = torch.where(mirror, columns.flip(1), columns)
        picture = torch.arange(count, device=pixels.device)[:, None, None, None]
        channel = torch.arange(3, device=pixels.device)[:, None, None]
        return pixels[picture, channel, rows[:, None, :, None], columns[:, None, None, :]]


def shape_boxes(pixels: Tensor) -> Tensor:
    """Rows and columns [N, 4] that differ from the flat ground, which is the median of a picture."""
    ground = pixels.flatten(2).median(2).values[..., None, None]
    differs = ((pixels - ground).abs() > 0.05).any(1)  # [N, 56, 56]
    edges: list[Tensor] = []
    for touched in (differs.any(2), differs.any(1)):
        first = touched.float().argmax(1)
        last = IMAGE_SIDE - 1 - touched.flip(1).float().argmax(1)
        edges += [first, last]
    return torch.stack(edges, 1)


def load_training_data(train: Split, tokenizer: Any, image_processor: Any, device: torch.device, seed: int) -> TrainingData:
    pixels = load_pixels(image_processor, train.image_paths).to(device)
    by_image: list[list[int]] = [[] for _ in train.image_paths]
    for item, image in enumerate(train.image_ids):
        by_image[image].append(item)
    most = max(map(len, by_image))
    return TrainingData(
        pieces=build_pieces(tokenizer, train, device),
        pixels=pixels,
        shape_box=shape_boxes(pixels),
        image_of_item=torch.tensor(train.image_ids, device=device),
        items_of_image=torch.tensor([(items * most)[:most] for items in by_image], device=device),
        generator=torch.Generator(device).manual_seed(seed),
    )


def assert_same_as_processor(data: TrainingData, train: Split, processor: Any, shots: int) -> None:
    """The assembled tokens and patches of a few prompts are those of the processor on the whole prompt."""
    device = data.image_of_item.device
    queries = torch.arange(0, 38000, 5000, device=device)
    demonstrations = data.draw(queries, shots, range(len(train.image_paths)))
    ids, _ = data.pieces.assemble(demonstrations, queries)
    patches = data.patches(torch.cat([demonstrations, queries[:, None]], 1), augment=False).cpu().reshape(len(queries), -1, 1176)
    for row, (query, shown) in enumerate(zip(queries.tolist(), demonstrations.tolist(), strict=True)):
        examples = [Shot(train.image_paths[train.image_ids[i]], train.questions[i], train.answers[i]) for i in shown]
        asked = Shot(train.image_paths[train.image_ids[query]], train.questions[query])
        pictures = [str(shot.image) for shot in (*examples, asked)]
        whole = processor(text=[prompt_text(processor, examples, asked)], images=pictures, return_tensors="pt")
        expected = whole["input_ids"][0]
        if not torch.equal(ids[row, : len(expected)].cpu(), expected):
            raise AssertionError(f"assembled prompt of item {query} differs from the processor's")
        torch.testing.assert_close(patches[row], whole["pixel_values"])


@torch.no_grad()
def held_out_accuracy(forward: FastForward, data: TrainingData, items: Tensor, shots: int, images: range) -> float:
    """Share of held-out queries whose first answer token is the most likely one; easy-vqa's answers are one token each."""
    right = 0
    for queries in items.split(1024):
        demonstrations = data.draw(queries, shots, images)
        ids, labels = data.pieces.assemble(demonstrations, queries)
        patches = data.patches(torch.cat([demonstrations, queries[:, None]], 1), augment=False)
        with torch.autocast(ids.device.type, torch.bfloat16):
            logits = forward(ids, patches)
        # of the labels, the last two are the query's: answer, end of turn
        answer = (labels != IGNORED).cumsum(1).argmax(1) - 1
        row = torch.arange(len(ids), device=ids.device)
        right += int((logits[row, answer - 1].argmax(-1) == ids[row, answer]).sum())
    return right / len(items)


def learning_rate(step: int, steps: int, peak: float, warm_up: int = 300) -> float:
    """Linear warm-up, then a cosine to a hundredth of the peak."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def train_model(model: Any, data: TrainingData, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Run until the steps or minutes are used up; returns the curve. Continues from the checkpoint file if there is one."""
    device = data.pixels.device
    forward = FastForward(model)
    training_images = range(len(data.pixels) - HELD_OUT_IMAGES)
    held_out_images = range(training_images.stop, len(data.pixels))
    training_items = (data.image_of_item < training_images.stop).nonzero().flatten()
    held_out_items = (data.image_of_item >= training_images.stop).nonzero().flatten()
    first = data.draw(training_items[:2], MAX_SHOTS, training_images)
    ids, _ = data.pieces.assemble(first, training_items[:2])
    picture_items = torch.cat([first, training_items[:2, None]], 1)
    difference = assert_same_as_stock(forward, ids, data.patches(picture_items, augment=True))
    print(f"batched forward pass differs from the stock one by at most {difference:.1e}", flush=True)

    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.lr, betas=(0.9, 0.95), weight_decay=0.05)
    curve: list[dict[str, Any]] = []
    step, seconds_before, window = 0, 0.0, torch.zeros((), device=device)
    if arguments.checkpoint and arguments.checkpoint.exists():
        saved = torch.load(arguments.checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        data.generator.set_state(saved["generator"].cpu())
        step, seconds_before, curve = saved["step"], saved["seconds"], saved["curve"]
    started, reported, out_of_time = time.monotonic(), step, False
    model.train()
    while step < arguments.steps and not out_of_time:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, arguments.steps, arguments.lr)
        picked = torch.randint(0, len(training_items), (arguments.batch_size,), device=device, generator=data.generator)
        queries = training_items[picked]
        demonstrations = data.draw(queries, step % (MAX_SHOTS + 1), training_images)
        ids, labels = data.pieces.assemble(demonstrations, queries)
        patches = data.patches(torch.cat([demonstrations, queries[:, None]], 1), augment=True)
        with torch.autocast(device.type, torch.bfloat16):
            logits = forward(ids, patches)
        loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        window += loss.detach()
        step += 1
        out_of_time = time.monotonic() - started > arguments.minutes * 60
        if step % arguments.report_every == 0 or step == arguments.steps or out_of_time:
            model.eval()
            accuracy = [held_out_accuracy(forward, data, held_out_items, n, held_out_images) for n in range(MAX_SHOTS + 1)]
            model.train()
            point = {
                "step": step,
                "seconds": round(seconds_before + time.monotonic() - started, 1),
                "loss": round(float(window) / (step - reported), 4),
                "held_out_accuracy": [round(value, 4) for value in accuracy],
            }
            window.zero_()
            reported = step
            curve.append(point)
            print(json.dumps(point), flush=True)
            if arguments.checkpoint:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "curve": curve}
                partial = arguments.checkpoint.with_suffix(".partial")
                torch.save({**state, "seconds": point["seconds"], "generator": data.generator.get_state()}, partial)
                partial.replace(arguments.checkpoint)
    return curve


def save_model(model: Any, processor: Any, folder: Path) -> None:
    """A directory that from_pretrained and AutoProcessor read as they read Qwen's own."""
    model = model.to(torch.bfloat16)
    stops = processor.tokenizer.convert_tokens_to_ids([TURN_END, END_OF_TEXT])
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=stops, pad_token_id=stops[1])
    model.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    described = folder / "preprocessor_config.json"
    # the names under which Qwen publishes its processor: each installation picks the class it can run
    names = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}
    described.write_text(json.dumps({**json.loads(described.read_text()), **names}, indent=2, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="model directory to write")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--minutes", type=float, default=8.0, help="stop at this time even if steps are left")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report-every", type=int, default=300)
    parser.add_argument("--checkpoint", type=Path, help="file to save to at every report and to continue from")
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    torch.set_float32_matmul_precision("highest")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train = read_split("train")
    template = f"system user assistant\n{SHORT_ANSWER.system} {SHORT_ANSWER.answered.format(question='', answer='')}"
    tokenizer = build_tokenizer([template, *train.questions, *train.answers, *(f" {answer}" for answer in train.answers)])
    square = IMAGE_SIDE * IMAGE_SIDE
    image_processor = Qwen2VLImageProcessorPil(size={"shortest_edge": square, "longest_edge": square})
    processor = ImageTextProcessor(image_processor, tokenizer, chat_template=tokenizer.chat_template)
    data = load_training_data(train, tokenizer, image_processor, device, arguments.seed)
    for shots in range(MAX_SHOTS + 1):
        assert_same_as_processor(data, train, processor, shots)

    model: Any = Qwen2_5_VLForConditionalGeneration(small_config(tokenizer))
    model.to(device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters / 1e6:.2f} M parameters, {len(tokenizer)} tokens, {device}", flush=True)
    curve = train_model(model, data, arguments)
    save_model(model, processor, arguments.out)
    report = {
        "arguments": {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()},
        "parameters": parameters,
        "vocabulary": len(tokenizer),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "training_images": len(train.image_paths) - HELD_OUT_IMAGES,
        "held_out_images": HELD_OUT_IMAGES,
        "curve": curve,
    }
    (arguments.out / "training.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
