"""easy-vqa for the small VLM: its questions, the prompts made of them, and batches assembled on the device.

A prompt is cut where an image begins. Special tokens end every cut, so tokenizing the pieces and joining them gives exactly the
tokens of the whole prompt; a piece is tokenized once, and a batch is a few gathers.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import easy_vqa
import torch
from PIL import Image
from small_tokenizer import IMAGE_PAD, TURN_END, VISION_START
from torch import Tensor

from leverplus.prompts import SHORT_ANSWER, Shot

TOKENS_PER_IMAGE = 4
PATCHES_PER_IMAGE = 16
IMAGE_SIDE = 56
IGNORED = -100


@dataclass(frozen=True)
class Split:
    """Questions of one split; `image_ids` index `image_paths`."""

    questions: list[str]
    answers: list[str]
    image_ids: list[int]
    image_paths: list[Path]


def read_split(name: str) -> Split:
    """The split "train" or "test" of the installed easy-vqa package."""
    folder = Path(easy_vqa.__file__).parent / "data" / name
    rows = json.loads((folder / "questions.json").read_text())
    images = [folder / "images" / f"{i}.png" for i in range(len(list((folder / "images").glob("*.png"))))]
    return Split([row[0] for row in rows], [row[1] for row in rows], [int(row[2]) for row in rows], images)


def draw_shots(train: Split, count: int, seed: str) -> list[Shot]:
    """`count` random solved items of the training split; the same seed gives the same ones everywhere."""
    chosen = random.Random(seed).sample(range(len(train.questions)), count)
    return [Shot(train.image_paths[train.image_ids[i]], train.questions[i], train.answers[i]) for i in chosen]


def prompt_text(template_owner: Any, demonstrations: list[Shot], query: Shot) -> str:
    """The prompt as the scorer writes it; `template_owner` is a processor or a tokenizer."""
    messages = SHORT_ANSWER.messages(demonstrations, query)
    return template_owner.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def load_pixels(image_processor: Any, paths: list[Path]) -> Tensor:
    """Pictures as the image processor hands them to the model, patches put back in place: [N, 3, 56, 56] float32."""
    pictures: list[Image.Image] = []
    for path in paths:
        with Image.open(path) as picture:
            pictures.append(picture.convert("RGB"))
    patches = image_processor(images=pictures, return_tensors="pt")["pixel_values"]
    # [N, row block, column block, row, column, channel, time, y, x]; both times are the same picture
    blocks = patches.reshape(len(paths), 2, 2, 2, 2, 3, 2, 14, 14)[:, :, :, :, :, :, 0]
    return blocks.permute(0, 5, 1, 3, 6, 2, 4, 7).reshape(len(paths), 3, IMAGE_SIDE, IMAGE_SIDE)


def to_patches(pixels: Tensor) -> Tensor:
    """The inverse of `load_pixels`' last step: [N, 3, 56, 56] → [N·16, 1176] in the order of Qwen2.5-VL's image processor."""
    blocks = pixels.reshape(-1, 3, 2, 2, 14, 2, 2, 14).permute(0, 2, 5, 3, 6, 1, 4, 7)
    return blocks.unsqueeze(6).expand(-1, 2, 2, 2, 2, 3, 2, 14, 14).reshape(-1, 3 * 2 * 14 * 14)


@dataclass(frozen=True)
class PieceTable:
    """Tokenized pieces of prompts. Row 0 is the head, then one row per solved question, then one per query with its answer.

    ids [R, W] padded right; labels [R, W] the same at answer tokens, else -100; lengths [R].
    """

    ids: Tensor
    labels: Tensor
    lengths: Tensor
    demonstration_row: Tensor  # [items] row of the item as a demonstration
    query_row: Tensor  # [items] row of the item as the query
    pad: int
    head_length: int
    longest_demonstration: int
    longest_query: int

    def assemble(self, demonstrations: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Item indices [B, S] and [B] → ids and labels [B, L], padded right, L the longest there can be."""
        head = torch.zeros_like(queries)[:, None]
        rows = torch.cat([head, self.demonstration_row[demonstrations], self.query_row[queries][:, None]], dim=1)
        lengths = self.lengths[rows]
        starts = lengths.cumsum(1) - lengths
        column = torch.arange(self.ids.shape[1], device=rows.device)
        width = self.head_length + demonstrations.shape[1] * self.longest_demonstration + self.longest_query
        # what lies beyond a piece goes to one column more, which is cut off
        target = torch.where(column < lengths[..., None], starts[..., None] + column, width).flatten(1)
        ids = self.ids.new_full((len(rows), width + 1), self.pad).scatter_(1, target, self.ids[rows].flatten(1))
        labels = self.ids.new_full((len(rows), width + 1), IGNORED).scatter_(1, target, self.labels[rows].flatten(1))
        return ids[:, :width], labels[:, :width]


def build_pieces(tokenizer: Any, split: Split, device: torch.device) -> PieceTable:
    """Tokenize each piece that the split's items can contribute to a prompt."""
    pairs = sorted(set(zip(split.questions, split.answers, strict=True)))
    nowhere = Path()
    rows: list[tuple[list[int], list[int]]] = []
    solved: list[tuple[list[int], list[int]]] = []
    asked: list[tuple[list[int], list[int]]] = []
    for question, answer in pairs:
        text = prompt_text(tokenizer, [Shot(nowhere, question, answer)], Shot(nowhere, question))
        head, demonstration, query = re.split(f"(?={re.escape(VISION_START)})", text)
        if not rows:
            rows.append(_tokenize(tokenizer, head, None))
        at = demonstration.rindex(answer)
        solved.append(_tokenize(tokenizer, demonstration, (at, at + len(answer))))
        asked.append(_tokenize(tokenizer, query + answer + TURN_END, (len(query), len(query + answer + TURN_END))))
    rows += solved + asked
    width = max(len(ids) for ids, _ in rows)
    pad = int(tokenizer.pad_token_id)
    number = {pair: i for i, pair in enumerate(pairs)}
    of_item = torch.tensor([number[pair] for pair in zip(split.questions, split.answers, strict=True)], device=device)
    return PieceTable(
        ids=torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows], device=device),
        labels=torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in rows], device=device),
        lengths=torch.tensor([len(ids) for ids, _ in rows], device=device),
        demonstration_row=1 + of_item,
        query_row=1 + len(pairs) + of_item,
        pad=pad,
        head_length=len(rows[0][0]),
        longest_demonstration=max(len(ids) for ids, _ in solved),
        longest_query=max(len(ids) for ids, _ in asked),
    )


def _tokenize(tokenizer: Any, text: str, answer: tuple[int, int] | None) -> tuple[list[int], list[int]]:
    """Ids of the text with image placeholders widened, and labels at the characters from answer[0] to answer[1]."""
    encoded = tokenizer(text, return_offsets_mapping=True)
    image_pad = tokenizer.convert_tokens_to_ids(IMAGE_PAD)
    ids: list[int] = []
    labels: list[int] = []
    for token, (start, stop) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        repeat = TOKENS_PER_IMAGE if token == image_pad else 1
        inside = answer is not None and start < answer[1] and stop > answer[0]
        ids += [token] * repeat
        labels += [token if inside else IGNORED] * repeat
    return ids, labels
