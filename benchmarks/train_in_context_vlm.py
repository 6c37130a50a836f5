"""Train the VLM of assets/in-context-vlm from scratch to answer from its demonstrations.

    python benchmarks/train_in_context_vlm.py --out /tmp/m --steps 20000 --minutes 9

Each example is the scorer's own prompt (leverplus.prompts.SHORT_ANSWER through the chat template) with 0 to 4 demonstrations.
Languages, words and the meaning of frames are drawn anew for every prompt (in_context_episodes), so that the model can only learn
to read them off the prompt; the languages of the dataset are never shown. English and easy-vqa's training questions have
fixed answers
and teach it to see. The loss is taken on every answer of the prompt that what stands before it makes knowable.

Pictures are rendered by the dataset's own generator under other seeds. Watched while training: fresh episodes with pictures that
are not trained on, and easy-vqa's last 200 training pictures. No dataset folder and no test split is read here.

Writes a transformers model directory (bf16 safetensors, tokenizer, processor) and in it training.json with the curve.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from in_context_episodes import Episodes, EpisodeSource, Mix
from in_context_model import LayerwiseForward, Muon
from in_context_pictures import NAME_COUNTS, Pictures, channel_statistics, easy_names, easy_pixels, render_bank
from in_context_pieces import EASY, FIRST_WORD, RESULT, SECOND_WORD, build_in_context_tokenizer, build_pieces, select_labels
from small_vlm_data import IGNORED, IMAGE_SIDE, TOKENS_PER_IMAGE, read_split
from small_vlm_model import assert_same_as_stock, small_config
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from train_small_vlm import HELD_OUT_IMAGES, save_model
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vqa_scorer.engines.processor import ImageTextProcessor

SHOTS_CYCLE = (4, 2, 1, 4, 3, 0, 2, 4)
_ONLY_NAMING, _ONLY_PAIR = (1.0, 0.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0, 0.0)
_ONLY_OPERATION, _ONLY_PLAIN, _ONLY_EASY = (0.0, 0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Check:
    """A figure to watch. `bearing`: only episodes where so many demonstrations bear on the query; None: the knowable ones."""

    name: str
    shots: int
    mix: Mix
    bearing: int | None = None


CHECKS = (
    *(Check(f"one relevant of {n}", n, Mix(queries=_ONLY_NAMING, relevant=1.0, alike=0.0), 1) for n in (1, 2, 4)),
    *(Check(f"one relevant of {n}, others alike", n, Mix(queries=_ONLY_NAMING, relevant=1.0, alike=1.0), 1) for n in (2, 4)),
    Check("none relevant of 2", 2, Mix(queries=_ONLY_NAMING, relevant=0.0, alike=0.0), 0),
    Check("pair of 2", 2, Mix(queries=_ONLY_PAIR, relevant=1.0, alike=0.0)),
    Check("pair of 4", 4, Mix(queries=_ONLY_PAIR, relevant=1.0, alike=0.5)),
    Check("operation of 2", 2, Mix(queries=_ONLY_OPERATION, relevant=1.0, alike=0.0)),
    Check("plain of 0", 0, Mix(queries=_ONLY_PLAIN)),
    Check("plain of 2", 2, Mix(queries=_ONLY_PLAIN, alike=0.5)),
    Check("easy-vqa of 0", 0, Mix(queries=_ONLY_EASY)),
)
SCORED = (
    "one relevant of 1",
    "one relevant of 2",
    "one relevant of 4",
    "pair of 2",
    "operation of 2",
    "plain of 0",
    "easy-vqa of 0",
)
"""Their mean decides which state is kept."""


@torch.no_grad()
def share_right(forward: LayerwiseForward, source: EpisodeSource, pictures: Pictures, check: Check, count: int) -> float | None:
    """Share of fresh episodes whose whole answer is the likeliest, token by token; None where no episode fits the check."""
    episodes = source.draw(count, check.shots, check.mix)
    query = episodes.owner == check.shots
    row = torch.arange(count, device=query.device)[:, None]
    answer = query & (episodes.labels > 0) & (episodes.ids != forward.model.config.text_config.eos_token_id)
    if check.bearing is None:
        meanings = torch.tensor([FIRST_WORD, SECOND_WORD, RESULT, EASY], device=query.device)
        counted = torch.isin(episodes.labels, meanings) & query
        fits = (episodes.known[row, episodes.owner.clamp(min=0), episodes.labels] | ~counted).all(1)
    else:
        fits = episodes.bearing.sum(1) == check.bearing
    if not bool(fits.any()):
        return None
    with torch.autocast(query.device.type, torch.bfloat16):
        logits = forward(episodes.ids, pictures.patches(episodes.items, augment=False))
    said = logits[:, :-1].argmax(-1)
    right = ((said == episodes.ids[:, 1:]) | ~answer[:, 1:]).all(1)
    return float(right[fits].float().mean())


def learning_rate(progress: float, step: int, warm_up: int = 200, decay_from: float = 0.35) -> float:
    """Factor of the peak: a linear warm-up, a plateau, and a cosine to a hundredth over the rest. `progress` in 0 to 1."""
    down = max(0.0, (progress - decay_from) / (1 - decay_from))
    return min(1.0, (step + 1) / warm_up) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, down))))


class Optimizers:
    """Muon for the matrices of the layers, AdamW for the rest; or AdamW for all."""

    def __init__(self, named: list[tuple[str, nn.Parameter]], arguments: argparse.Namespace) -> None:
        inner = ("layers.", "blocks.", "merger.")
        of_muon = [
            parameter
            for name, parameter in named
            if arguments.muon_lr > 0 and parameter.ndim == 2 and any(p in name for p in inner)
        ]
        taken = {id(parameter) for parameter in of_muon}
        rest = [parameter for _, parameter in named if id(parameter) not in taken]
        self.muon, self.muon_lr, self.lr = Muon(of_muon) if of_muon else None, arguments.muon_lr, arguments.lr
        fused = rest[0].device.type == "cuda"
        self.everything = [*of_muon, *rest]
        self.adamw = torch.optim.AdamW(rest, lr=arguments.lr, betas=(0.9, 0.95), weight_decay=0.05, fused=fused)

    def step(self, factor: float) -> None:
        for group in self.adamw.param_groups:
            group["lr"] = self.lr * factor
        self.adamw.step()
        if self.muon is not None:
            self.muon.step(self.muon_lr * factor)

    def zero_grad(self) -> None:
        for parameter in self.everything:
            parameter.grad = None

    def state(self) -> dict[str, Any]:
        return {"adamw": self.adamw.state_dict(), "muon": self.muon.velocity if self.muon else []}

    def load(self, state: dict[str, Any]) -> None:
        self.adamw.load_state_dict(state["adamw"])
        if self.muon is not None:
            self.muon.velocity = state["muon"]


def assert_same_as_processor(
    source: EpisodeSource, pictures: Pictures, processor: Any, tokenizer: Any, episodes: Episodes
) -> None:
    """Assembled prompts, decoded and tokenized whole by the processor's tokenizer, are the same tokens again."""
    for row in range(len(episodes.ids)):
        ids = episodes.ids[row][: int((episodes.owner[row] >= 0).nonzero().max()) + 1].tolist()
        text = tokenizer.decode(ids)
        if tokenizer(text)["input_ids"] != ids:
            raise AssertionError(f"an assembled prompt is tokenized in another way: {text!r}")
    patches = pictures.patches(episodes.items, augment=False)
    if patches.shape != (episodes.items.asked.numel() * 16, 1176):
        raise AssertionError(f"patches of shape {tuple(patches.shape)}")


class Seeing:
    """Linear heads on the mean of a picture's tokens that name what it shows; they teach the vision tower and are thrown away."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.heads = nn.ModuleList(nn.Linear(width, count) for count in NAME_COUNTS).to(device)

    def loss(self, pictures: Tensor, names: Tensor) -> Tensor:
        """pictures [N·4, d], names [N, 5] → the sum of the heads' cross-entropies."""
        pooled = pictures.view(len(names), TOKENS_PER_IMAGE, -1).float().mean(1)
        losses = [
            cross_entropy(head(pooled).float(), names[:, i], ignore_index=IGNORED, reduction="sum")
            / (names[:, i] != IGNORED).sum().clamp(min=1)
            for i, head in enumerate(self.heads)
        ]
        return torch.stack(losses).sum()

    @torch.no_grad()
    def right(self, pictures: Tensor, names: Tensor) -> list[float]:
        pooled = pictures.view(len(names), TOKENS_PER_IMAGE, -1).float().mean(1)
        said = [head(pooled).argmax(1) for head in self.heads]
        told = [names[:, i] != IGNORED for i in range(len(said))]
        return [round(float((one == names[:, i])[told[i]].float().mean()), 4) for i, one in enumerate(said)]


ONLY_PICTURES = Mix(queries=(0.0, 0.0, 0.0, 0.7, 0.3))


def learn_to_see(
    forward: LayerwiseForward,
    plainly: LayerwiseForward,
    seeing: Seeing,
    source: EpisodeSource,
    held_out: EpisodeSource,
    pictures: Pictures,
    unseen: Pictures,
    arguments: argparse.Namespace,
) -> list[dict[str, Any]]:
    """The first phase: the vision tower alone, on the names of what the pictures show; returns its curve."""
    vision = forward.model.model.visual
    named = [(f"blocks.{name}", parameter) for name, parameter in vision.named_parameters()]
    optimizers = Optimizers([*named, *seeing.heads.named_parameters()], arguments)
    curve: list[dict[str, Any]] = []
    started = time.monotonic()
    for step in range(arguments.seeing_steps):
        items = source.random_items(arguments.seeing_batch, 0, ONLY_PICTURES)
        with torch.autocast(items.asked.device.type, torch.bfloat16):
            loss = seeing.loss(forward.see(pictures.patches(items, augment=True)), pictures.names(items))
        optimizers.zero_grad()
        loss.backward()
        optimizers.step(learning_rate(step / arguments.seeing_steps, step, decay_from=0.5))
        if (step + 1) % max(1, arguments.seeing_steps // 10) == 0:
            items = held_out.random_items(2048, 0, ONLY_PICTURES)
            with torch.no_grad(), torch.autocast(items.asked.device.type, torch.bfloat16):
                shown = plainly.see(unseen.patches(items, augment=False))
            seconds = round(time.monotonic() - started, 1)
            point = {
                "step": step + 1,
                "seconds": seconds,
                "loss": round(float(loss.detach()), 4),
                "right": seeing.right(shown, unseen.names(items)),
            }
            curve.append(point)
            print(json.dumps(point), flush=True)
    return curve


def train_model(
    model: Any,
    source: EpisodeSource,
    held_out: EpisodeSource,
    pictures: Pictures,
    unseen: Pictures,
    arguments: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Runs until the steps or minutes are used up and leaves the best state in `model`; returns the curves."""
    device = pictures.pixels.device
    forward, plainly = LayerwiseForward(model, compiled=arguments.compile), LayerwiseForward(model)
    few = source.draw(2, 2, Mix())
    difference = assert_same_as_stock(plainly, few.ids, pictures.patches(few.items, augment=True))
    print(f"layerwise forward pass differs from the stock one by at most {difference:.1e}", flush=True)

    mix, seeing = Mix(), Seeing(model.config.text_config.hidden_size, device)
    named = [*model.named_parameters(), *seeing.heads.named_parameters()]
    optimizers = Optimizers([(name, parameter) for name, parameter in named if parameter.requires_grad], arguments)
    curve: list[dict[str, Any]] = []
    seeing_curve: list[dict[str, Any]] = []
    step, before, window, best, best_state = 0, 0.0, torch.zeros((), device=device), -1.0, dict[str, Tensor]()
    if arguments.checkpoint and arguments.checkpoint.exists():
        saved = torch.load(arguments.checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        seeing.heads.load_state_dict(saved["seeing"])
        seeing_curve = saved["seeing_curve"]
        optimizers.load(saved["optimizers"])
        source.generator.set_state(saved["generator"].cpu())
        step, before, curve, best, best_state = (
            saved["step"],
            saved["seconds"],
            saved["curve"],
            saved["best"],
            saved["best_state"],
        )
    started = time.monotonic()
    model.train()
    if step == 0 and arguments.seeing_steps:
        seeing_curve = learn_to_see(forward, plainly, seeing, source, held_out, pictures, unseen, arguments)
    reported, last_report, done = step, time.monotonic(), False
    while not done:
        seconds = before + time.monotonic() - started
        factor = learning_rate(max(step / arguments.steps, seconds / (arguments.minutes * 60)), step)
        shots = SHOTS_CYCLE[step % len(SHOTS_CYCLE)]
        episodes = source.draw(arguments.batch_size, shots, mix)
        patches = pictures.patches(episodes.items, augment=True)
        places, targets = select_labels(episodes.ids, episodes.labels, episodes.owner, episodes.known, 2 * shots + 3)
        with torch.autocast(device.type, torch.bfloat16):
            shown = forward.see(patches)
            hidden = forward.hidden(episodes.ids, shown)[0]
            chosen = hidden.gather(1, places.clamp(min=0)[..., None].expand(-1, -1, hidden.shape[-1]))
            logits = model.lm_head(chosen)
        loss = cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)
        named_loss = seeing.loss(shown, pictures.names(episodes.items)) if arguments.seeing_weight else loss.new_zeros(())
        optimizers.zero_grad()
        (loss + arguments.seeing_weight * named_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.step(factor)
        window += loss.detach()
        step += 1
        seconds = before + time.monotonic() - started
        done = step >= arguments.steps or seconds > arguments.minutes * 60
        if not done and time.monotonic() - last_report < arguments.report_seconds:
            continue
        model.eval()
        figures = {check.name: share_right(plainly, held_out, unseen, check, arguments.check_size) for check in CHECKS}
        model.train()
        point = {
            "step": step,
            "seconds": round(seconds, 1),
            "loss": round(float(window) / max(1, step - reported), 4),
            "rate": round(factor, 3),
            "right": {name: None if value is None else round(value, 4) for name, value in figures.items()},
        }
        window.zero_()
        reported, last_report = step, time.monotonic()
        curve.append(point)
        print(json.dumps(point), flush=True)
        score = sum(figures[name] or 0.0 for name in SCORED)
        if score >= best:
            best, best_state = score, {name: value.detach().clone() for name, value in model.state_dict().items()}
        if arguments.checkpoint:
            state = {"model": model.state_dict(), "optimizers": optimizers.state(), "step": step, "curve": curve, "best": best}
            state |= {"seeing": seeing.heads.state_dict(), "seeing_curve": seeing_curve}
            partial = arguments.checkpoint.with_suffix(".partial")
            generator = source.generator.get_state()
            torch.save({**state, "best_state": best_state, "seconds": seconds, "generator": generator}, partial)
            partial.replace(arguments.checkpoint)
    model.load_state_dict(best_state)
    return {"seeing": seeing_curve, "curve": curve}


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="model directory to write")
    parser.add_argument("--init", type=Path, help="model directory to start from instead of random weights")
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--minutes", type=float, default=9.0, help="stop at this time even if steps are left")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--lr", type=float, default=1e-3, help="peak of AdamW's")
    parser.add_argument("--muon-lr", type=float, default=0.02, help="peak of Muon's; 0 leaves all to AdamW")
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
    parser.add_argument("--checkpoint", type=Path, help="file to save to at every report and to continue from")
    return parser.parse_args()


def main() -> None:
    arguments = read_arguments()
    torch.manual_seed(arguments.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    easy = read_split("train")
    tokenizer = build_in_context_tokenizer(easy)
    square = IMAGE_SIDE * IMAGE_SIDE
    image_processor = Qwen2VLImageProcessorPil(size={"shortest_edge": square, "longest_edge": square})
    processor = ImageTextProcessor(image_processor, tokenizer, chat_template=tokenizer.chat_template)

    began = time.monotonic()
    of_easy, boxes = easy_pixels(image_processor, easy)
    easy_image = torch.tensor(easy.image_ids, device=device)
    first_held_out = len(easy.image_paths) - HELD_OUT_IMAGES
    mean, deviation = (value.to(device) for value in channel_statistics(image_processor))
    pieces, names_of_easy = build_pieces(tokenizer, easy, device), easy_names(easy).to(device)
    sides: list[tuple[EpisodeSource, Pictures]] = []
    for purpose, per_cell, number in (("training", arguments.pictures, 0), ("held out", max(1, arguments.pictures // 20), 1)):
        generator = torch.Generator(device).manual_seed(2 * arguments.seed + number)
        bank = torch.cat([render_bank(per_cell, purpose, arguments.workers), of_easy]).to(device)
        which = ((easy_image >= first_held_out) == bool(number)).nonzero().flatten()
        pictures = Pictures(bank, per_cell, easy_image, names_of_easy, boxes.to(device), mean, deviation, generator)
        sides.append((EpisodeSource(tokenizer, pieces, which, generator), pictures))
    (source, pictures), (held_out, unseen) = sides
    print(f"pictures: {len(pictures.pixels)} in {time.monotonic() - began:.1f} s", flush=True)
    for shots in range(5):
        assert_same_as_processor(source, pictures, processor, tokenizer, source.draw(16, shots, Mix()))

    config = small_config(
        tokenizer,
        layers=arguments.layers,
        intermediate=arguments.intermediate,
        key_value_heads=arguments.key_value_heads,
        vision_layers=arguments.vision_layers,
    )
    model: Any = Qwen2_5_VLForConditionalGeneration(config)
    if arguments.init:
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(arguments.init, dtype=torch.float32)
    model.to(device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters / 1e6:.2f} M parameters, {len(tokenizer)} tokens, {device}", flush=True)
    curves = train_model(model, source, held_out, pictures, unseen, arguments)
    save_model(model, processor, arguments.out)
    report = {
        "arguments": {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()},
        "parameters": parameters,
        "vocabulary": len(tokenizer),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **curves,
    }
    (arguments.out / "training.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
