"""Prompts that the in-context VLM is trained on: the scorer's own, labelled where the dataset's rules say they can be known."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
import torch
from in_context_vlm import TOKENS_PER_IMAGE
from in_context_vlm.easy_questions import read_split
from in_context_vlm.episodes import EASY_QUESTION, ENGLISH_INDEX, Episodes, EpisodeSource, Items, Mix
from in_context_vlm.pieces import ALWAYS, ASKED, build_pieces, prompt_text
from in_context_vlm.tokenizer import IMAGE_PAD, TURN_END, build_tokenizer
from in_context_vlm.training import deciding, refuse_other_arguments
from torch import Tensor
from transformers import Qwen2Tokenizer

from leverplus.dataset.invented_words import Structure, suffices
from leverplus.dataset.invented_words.families import OPERANDS, OPERATIONS, bears_on
from leverplus.dataset.invented_words.scenes import FRAMES
from leverplus.dataset.invented_words.words import COLOURS, ENGLISH, SHAPES
from leverplus.ids import ItemId
from leverplus.prompts import Shot

COUNT = 96
NOWHERE = Path()
SOLVED = re.compile(r"Question: (.+?) Short answer: (.+)\n")
LAST = re.compile(r"Question: ([^\n]+?) Short answer:<.+assistant\n (.+)<", re.DOTALL)


@pytest.fixture(scope="module")
def tokenizer() -> Qwen2Tokenizer:
    return build_tokenizer(read_split("train"))


@pytest.fixture(scope="module")
def source(tokenizer: Qwen2Tokenizer) -> EpisodeSource:
    easy, cpu = read_split("train"), torch.device("cpu")
    every_item = torch.arange(len(easy.questions))
    return EpisodeSource(tokenizer, build_pieces(tokenizer, easy, cpu), every_item, torch.Generator().manual_seed(0))


def draw(source: EpisodeSource, shots: int) -> tuple[Episodes, Tensor]:
    """Episodes, and the number of the operation that each frame stands for in them [B, 3]."""
    operations = torch.randint(len(OPERATIONS), (COUNT, len(FRAMES)), generator=source.generator)
    return source.assemble(source.draw_items(COUNT, shots, Mix()), source.draw_languages(COUNT), operations), operations


def structure(items: Items, row: int, place: int, operations: Tensor) -> Structure | None:
    """What the dataset would say of the item; None for one of easy-vqa's."""
    if items.asked[row, place] == EASY_QUESTION:
        return None
    asked, frame, language = (int(values[row, place]) for values in (items.asked, items.frame, items.language))
    calculates = ASKED[asked] == "operation"
    return Structure(
        item_id=ItemId(place),
        family="operator" if calculates else "naming",
        asked=ASKED[asked],
        language=None if calculates else ENGLISH if language == ENGLISH_INDEX else str(language),
        colour=COLOURS[int(items.colour[row, place])],
        shape=SHAPES[int(items.shape[row, place])],
        frame=FRAMES[frame],
        operands=OPERANDS[int(items.operands[row, place])] if calculates else None,
        operation=OPERATIONS[int(operations[row, frame])] if calculates else None,
        texture="dots",
        centre=(28.0, 28.0),
        radius=9.0,
    )


@pytest.mark.parametrize("shots", range(5))
def test_an_answer_counts_where_the_demonstrations_before_it_suffice(source: EpisodeSource, shots: int) -> None:
    episodes, operations = draw(source, shots)
    seen: set[bool] = set()
    for row in range(COUNT):
        structures = [structure(episodes.items, row, place, operations) for place in range(shots + 1)]
        query = structures[-1]
        for place, here in enumerate(structures):
            before = [one for one in structures[:place] if one is not None]
            meanings = set(episodes.labels[row][episodes.owner[row] == place].tolist()) - {0, ALWAYS}
            assert meanings
            known = all(bool(episodes.known[row, place, meaning]) for meaning in meanings)
            assert known == (here is None or suffices(here, before))
            seen.add(known)
            if place < shots:
                bears = query is not None and here is not None and bears_on(query, here)
                assert bool(episodes.bearing[row, place]) == bears
    assert seen == ({True, False} if shots else {True})


@pytest.mark.parametrize("shots", range(5))
def test_the_prompts_are_the_scorers(source: EpisodeSource, tokenizer: Qwen2Tokenizer, shots: int) -> None:
    episodes, _ = draw(source, shots)
    for row in range(COUNT):
        ids = episodes.ids[row][: int((episodes.owner[row] >= 0).nonzero().max()) + 1]
        text = str(tokenizer.decode(ids)).replace(IMAGE_PAD * TOKENS_PER_IMAGE, IMAGE_PAD)
        last = LAST.search(text)
        assert last is not None
        solved = [Shot(NOWHERE, question, answer) for question, answer in SOLVED.findall(text)]
        assert len(solved) == shots
        assert text == f"{prompt_text(tokenizer, solved, Shot(NOWHERE, last[1]))} {last[2]}{TURN_END}"


def test_a_run_goes_on_with_its_own_arguments_only(tmp_path: Path) -> None:
    given = deciding(argparse.Namespace(lr=1e-3, seed=0, steps=9, out=tmp_path, workers=3))
    assert given == {"lr": 1e-3, "seed": 0, "steps": 9}
    refuse_other_arguments(tmp_path, given, dict(given))
    with pytest.raises(SystemExit, match=r"lr 0\.001 there, 0\.1 here; seed 0 there, 1 here"):
        refuse_other_arguments(tmp_path, given, {**given, "lr": 0.1, "seed": 1})
