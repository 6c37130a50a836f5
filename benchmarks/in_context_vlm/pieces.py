"""Prompts to train on as gathers on the device: pieces with gaps, and the words that fill them.

A prompt is cut where an image begins. Special tokens end every cut, so tokenizing the pieces and joining them gives exactly the
tokens of the whole prompt; a piece is tokenized once, and a batch is a few gathers. A question about invented words is
tokenized with stand-ins, and their places are kept as gaps: language, first word, second word, two operands, result.
Answers carry a leading space also where the model is to give them: an answer is the same token in a demonstration and the reply.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from in_context_vlm import IGNORED, TOKENS_PER_IMAGE
from in_context_vlm.easy_questions import EasyQuestions
from in_context_vlm.tokenizer import IMAGE_PAD, TURN_END, VISION_START
from leverplus.dataset.invented_words.families import ASKED_COLUMNS, QUESTIONS, Asked
from leverplus.dataset.invented_words.words import LANGUAGE_NAMES, WORDS
from leverplus.prompts import SHORT_ANSWER, Shot

ASKED: tuple[Asked, ...] = ("colour", "shape", "pair", "operation")
GAPS = ("language", "first word", "second word", "first operand", "second operand", "result")
FIRST_WORD, SECOND_WORD, RESULT, EASY, ALWAYS = 1, 2, 3, 4, 5
"""What a label stands for, by which it is known whether its answer can be known. 0 is no label."""

_STAND_INS = {
    "language": LANGUAGE_NAMES[0],
    "first word": WORDS[0],
    "second word": WORDS[1],
    "first operand": "8",
    "second operand": "3",
    "result": "5",
}
_LABEL_OF_GAP = {"first word": FIRST_WORD, "second word": SECOND_WORD, "result": RESULT}


@dataclass(frozen=True)
class Pieces:
    """Row 0 is the head; then a demonstration and a query for each of ASKED; then both for each easy-vqa question.

    ids [R, W] padded right; labels [R, W] as above; gaps [R, 6] the column of each gap, W where there is none; lengths [R].
    """

    ids: Tensor
    labels: Tensor
    gaps: Tensor
    lengths: Tensor
    easy_demonstration: Tensor  # [easy items] row
    easy_query: Tensor
    pad: int
    longest_demonstration: int
    longest_query: int

    def assemble(self, rows: Tensor, fillings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """rows [B, N] of demonstrations and, last, the query; fillings [B, N, 6] tokens for their gaps.

        Returns ids [B, L] padded right, labels [B, L], and owner [B, L]: which of the N a token belongs to.
        """
        count, width = self.ids.shape[1], int(self.lengths[0]) + self.longest_query
        width += (rows.shape[1] - 1) * self.longest_demonstration
        pieces = torch.cat([self.ids[rows], self.ids.new_full((*rows.shape, 1), self.pad)], 2)
        pieces = pieces.scatter(2, self.gaps[rows], fillings)[..., :count]
        head = torch.zeros_like(rows[:, :1])
        pieces = torch.cat([self.ids[head], pieces], 1)
        rows = torch.cat([head, rows], 1)
        lengths = self.lengths[rows]
        starts = lengths.cumsum(1) - lengths
        column = torch.arange(count, device=rows.device)
        # what lies beyond a piece goes to one column more, which is cut off
        target = torch.where(column < lengths[..., None], starts[..., None] + column, width).flatten(1)
        owner = (torch.arange(rows.shape[1], device=rows.device) - 1)[None, :, None].expand(pieces.shape)
        placed: list[Tensor] = []
        for values, empty in ((pieces, self.pad), (self.labels[rows], 0), (owner, -1)):
            sheet = self.ids.new_full((len(rows), width + 1), empty)
            placed.append(sheet.scatter_(1, target, values.flatten(1))[:, :width])
        return placed[0], placed[1], placed[2]


def prompt_text(template_owner: Any, demonstrations: list[Shot], query: Shot) -> str:
    """The prompt as the scorer writes it; `template_owner` is a processor or a tokenizer."""
    messages = SHORT_ANSWER.messages(demonstrations, query)
    return template_owner.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def build_pieces(tokenizer: Any, easy: EasyQuestions, device: torch.device) -> Pieces:
    """Tokenize every piece that a prompt can be made of."""
    head: list[_Piece] = []
    demonstrations: list[_Piece] = []
    queries: list[_Piece] = []
    pairs = sorted(set(zip(easy.questions, easy.answers, strict=True)))
    own = [(*_with_stand_ins(asked), True) for asked in ASKED]
    for question, answer, has_gaps in (*own, *((question, answer, False) for question, answer in pairs)):
        text = prompt_text(tokenizer, [Shot(Path(), question, answer)], Shot(Path(), question))
        start, demonstration, query = re.split(f"(?={re.escape(VISION_START)})", text)
        head = head or [_tokenize(tokenizer, start, None, False)]
        demonstrations.append(_tokenize(tokenizer, demonstration, demonstration.rindex(f" {answer}"), has_gaps))
        queries.append(_tokenize(tokenizer, f"{query} {answer}{TURN_END}", len(query), has_gaps))
    pieces = [*head, *demonstrations[: len(own)], *queries[: len(own)], *demonstrations[len(own) :], *queries[len(own) :]]
    width = max(len(piece.ids) for piece in pieces)
    pad = int(tokenizer.pad_token_id)
    number = {pair: i for i, pair in enumerate(pairs)}
    of_item = torch.tensor([number[pair] for pair in zip(easy.questions, easy.answers, strict=True)], device=device)
    return Pieces(
        ids=torch.tensor([piece.ids + [pad] * (width - len(piece.ids)) for piece in pieces], device=device),
        labels=torch.tensor([piece.labels + [0] * (width - len(piece.labels)) for piece in pieces], device=device),
        gaps=torch.tensor([[width if gap is None else gap for gap in piece.gaps] for piece in pieces], device=device),
        lengths=torch.tensor([len(piece.ids) for piece in pieces], device=device),
        easy_demonstration=1 + 2 * len(own) + of_item,
        easy_query=1 + 2 * len(own) + len(pairs) + of_item,
        pad=pad,
        longest_demonstration=max(len(piece.ids) for piece in demonstrations),
        longest_query=max(len(piece.ids) for piece in queries),
    )


def select_labels(ids: Tensor, labels: Tensor, owner: Tensor, known: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Where the logits that matter stand [B, count], and their targets [B, count], -100 where nothing is to be learnt.

    known [B, N, 6]: whether a label of each meaning can be known; `count` bounds the labels of a prompt.
    """
    row = torch.arange(len(ids), device=ids.device)[:, None]
    wanted = known[row, owner.clamp(min=0), labels] & (labels > 0)
    place = wanted.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :count]
    targets = torch.where(wanted.gather(1, place), ids.gather(1, place), IGNORED)
    return place - 1, targets


@dataclass(frozen=True)
class _Piece:
    ids: list[int]
    labels: list[int]
    gaps: list[int | None]


def _with_stand_ins(asked: Asked) -> tuple[str, str]:
    """The question and its answer with a stand-in in every gap."""
    named = {"language": _STAND_INS["language"], "first": _STAND_INS["first operand"], "second": _STAND_INS["second operand"]}
    words = [_STAND_INS["first word"], _STAND_INS["second word"]][: len(ASKED_COLUMNS[asked])]
    return QUESTIONS[asked].format(**named), " ".join(words) or _STAND_INS["result"]


def _tokenize(tokenizer: Any, text: str, answer_at: int | None, has_gaps: bool) -> _Piece:
    """Ids with image placeholders widened; labels on all from `answer_at` (its space) to the line's end or the turn's."""
    encoded = tokenizer(text, return_offsets_mapping=True)
    image_pad = tokenizer.convert_tokens_to_ids(IMAGE_PAD)
    ids: list[int] = []
    labels: list[int] = []
    gaps: list[int | None] = [None] * len(GAPS)
    for token, (start, stop) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        repeat = TOKENS_PER_IMAGE if token == image_pad else 1
        label = 0
        if answer_at is not None and start >= answer_at and text[start:stop] != "\n":
            label = EASY if not has_gaps else ALWAYS
            label = ALWAYS if text[start:stop] == TURN_END else label
        if has_gaps:
            name = next((name for name, word in _STAND_INS.items() if text[start:stop].strip() == word), None)
            if name is not None:
                gaps[GAPS.index(name)] = len(ids)
                label = _LABEL_OF_GAP.get(name, 0)
        ids += [token] * repeat
        labels += [label] * repeat
    return _Piece(ids, labels, gaps)
