"""The generated dataset: the same bytes again, the families' shares, who tells whom what, and noisy answers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from leverplus.dataset import Dataset, majority_answer
from leverplus.dataset.invented_words import Structure, generate, read_structures, suffices, sufficient_pointer
from leverplus.dataset.invented_words.answers import annotate
from leverplus.dataset.invented_words.families import OPERANDS, Asked, Family, Operation, apply, possible_operations
from leverplus.dataset.invented_words.scenes import FRAMES, PAINT, Frame, draw_scene, render
from leverplus.dataset.invented_words.words import (
    COLOURS,
    COLUMNS,
    LANGUAGE_NAMES,
    SHAPES,
    WORDS,
    draw_languages,
    shuffled,
)
from leverplus.errors import Conflict, InvalidConfig, NotFound
from leverplus.ids import ItemId
from leverplus.metric import score_answer

SMALL = {"train": 60, "val": 20, "test": 20}


def item(
    number: int,
    family: Family = "naming",
    asked: Asked = "colour",
    language: str | None = "Kasu",
    colour: str = "red",
    shape: str = "ring",
    frame: Frame = "white",
    operands: tuple[int, int] | None = None,
    operation: Operation | None = None,
) -> Structure:
    return Structure(
        ItemId(number), family, asked, language, colour, shape, frame, operands, operation, "dots", (28.0, 28.0), 9.0
    )


def sum_of(number: int, operands: tuple[int, int], operation: Operation = "plus", frame: Frame = "white") -> Structure:
    return item(number, "operator", "operation", None, frame=frame, operands=operands, operation=operation)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "words"
    generate(path, name="words", seed=5, **SMALL)
    return path


def test_the_same_arguments_give_the_same_bytes_and_another_seed_others(folder: Path, tmp_path: Path) -> None:
    generate(tmp_path / "again", name="words", seed=5, **SMALL)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file())
    assert len(files) == 50 + 4  # two questions an image; dataset, items, structure, languages
    for file in files:
        assert (folder / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file
    other = generate(tmp_path / "other", name="words", seed=6, **SMALL)
    assert other.sha256 != Dataset.open(folder).info.sha256


def test_a_smaller_cut_is_the_beginning_of_each_split(folder: Path, tmp_path: Path) -> None:
    generate(tmp_path / "cut", name="words", seed=5, train=30, val=10, test=4)
    whole, cut = Dataset.open(folder), Dataset.open(tmp_path / "cut")
    for split in ("train", "val", "test"):
        pairs = zip(cut.split_ids(split), whole.split_ids(split), strict=False)
        for here, there in pairs:
            small, large = cut.item(here), whole.item(there)
            assert (small.question, small.answers, small.question_id) == (large.question, large.answers, large.question_id)
            assert cut.image_path(here).read_bytes() == whole.image_path(there).read_bytes()


def test_families_have_their_shares_in_every_ten_items(folder: Path) -> None:
    structures = read_structures(folder)
    for split in ("train", "val", "test"):
        ids = Dataset.open(folder).split_ids(split)
        for start in range(0, len(ids), 10):
            counts = Counter(structures[item_id].family for item_id in ids[start : start + 10])
            assert counts == {"naming": 4, "pair": 4, "operator": 1, "plain": 1}


def test_items_are_what_their_structure_says(folder: Path) -> None:
    dataset = Dataset.open(folder)
    assert dataset.info.answers_source == "simulated"
    tables = orjson.loads((folder / "languages.json").read_bytes())
    words = {language["name"]: language["words"] for language in tables["languages"]}
    assert len(words) == 2
    for one, structure in zip(dataset.items, read_structures(folder), strict=True):
        assert one.question == structure.question
        assert one.item_id == structure.item_id
        match structure.family:
            case "operator":
                assert structure.operands is not None
                assert structure.operation == tables["operations"][structure.frame]
                assert one.answer == str(apply(structure.operation, structure.operands))
            case "plain":
                expected = {"colour": structure.colour, "shape": structure.shape}
                assert one.answer == expected.get(structure.asked, f"{structure.colour} {structure.shape}")
            case "naming":
                table = words[structure.language or ""][structure.asked]
                place = COLOURS.index(structure.colour) if structure.asked == "colour" else SHAPES.index(structure.shape)
                assert one.answer == table[place]
            case "pair":
                table = words[structure.language or ""]
                first = table["joined colour"][COLOURS.index(structure.colour)]
                assert one.answer == f"{first} {table['joined shape'][SHAPES.index(structure.shape)]}"
    images = Counter(one.image_id for one in dataset.items)
    assert set(images.values()) == {2}
    assert len({(one.image_id, one.question) for one in dataset.items}) == len(dataset)


def test_languages_have_no_word_in_common() -> None:
    assert len(set(WORDS)) == 128
    assert not {name.lower() for name in LANGUAGE_NAMES} & set(WORDS)
    languages = draw_languages(3, seed=1)
    words = [word for language in languages for column in COLUMNS for word in language.words[column]]
    assert len(words) == len(set(words)) == 3 * 20
    assert draw_languages(3, seed=1) == languages != draw_languages(3, seed=2)
    with pytest.raises(ValueError, match="7 languages"):
        draw_languages(7, seed=1)


def test_naming_is_told_by_the_same_language_question_and_value_only() -> None:
    query = item(0)
    assert suffices(query, [item(1, shape="cross", frame="black")])
    assert not suffices(query, [item(1, colour="blue")])
    assert not suffices(query, [item(1, language="Miro")])
    assert not suffices(query, [item(1, asked="shape")])
    assert not suffices(query, [item(1, "pair", "pair")])  # joined forms are words of their own
    assert not suffices(query, [item(1, "plain", language="English")])
    assert not suffices(query, [])
    assert suffices(item(0, asked="shape"), [item(1, asked="shape", colour="blue")])


def test_a_pair_needs_two_items_that_complete_each_other_or_one_with_both() -> None:
    query = item(0, "pair", "pair", colour="red", shape="ring")
    colour = item(1, "pair", "pair", colour="red", shape="cross")
    shape = item(2, "pair", "pair", colour="blue", shape="ring")
    assert not suffices(query, [colour])
    assert not suffices(query, [shape])
    assert suffices(query, [colour, shape])
    assert suffices(query, [shape, colour])
    assert not suffices(query, [colour, item(3, "pair", "pair", colour="red", shape="square")])
    assert not suffices(query, [colour, item(3, "pair", "pair", language="Miro", colour="blue", shape="ring")])
    assert not suffices(query, [item(4), item(5, asked="shape")])
    assert suffices(query, [item(3, "pair", "pair", colour="red", shape="ring")])


def test_an_operation_is_told_by_numbers_that_fit_no_other() -> None:
    query = sum_of(0, (3, 2))  # 5, 1 or 6
    assert suffices(query, [sum_of(1, (4, 1))])
    assert possible_operations("white", [sum_of(1, (2, 2))]) == ("plus", "times")
    assert not suffices(query, [sum_of(1, (2, 2))])  # 4: a sum or a product
    assert not suffices(query, [sum_of(1, (7, 0))])  # 7: a sum or a difference
    assert suffices(query, [sum_of(1, (2, 2)), sum_of(2, (7, 0))])
    assert not suffices(query, [sum_of(1, (4, 1), frame="black")])
    assert suffices(sum_of(0, (2, 2)), [sum_of(1, (4, 2), "times")])
    assert suffices(sum_of(0, (0, 0)), [])  # 0 whatever the operation is


def test_plain_needs_nothing() -> None:
    assert suffices(item(0, "plain", "pair", "English"), [])


def test_the_structural_oracle_finds_a_pointer_of_the_length_asked_for() -> None:
    query = item(0, "pair", "pair")
    others = [item(number, "pair", "pair", "Miro") for number in range(1, 6)]
    colour, shape = item(6, "pair", "pair", shape="cross"), item(7, "pair", "pair", colour="blue")
    assert sufficient_pointer(query, [*others, colour], 2) is None
    assert sufficient_pointer(query, [*others, shape, colour], 2) == (7, 6)
    assert sufficient_pointer(query, [*others, shape, colour], 1) is None
    assert sufficient_pointer(query, [*others, shape, colour], 3) == (1, 7, 6)
    assert sufficient_pointer(item(0), [*others, item(8)], 2) == (1, 8)
    assert sufficient_pointer(item(0, "plain", language="English"), others, 2) == (1, 2)
    assert sufficient_pointer(item(0, "plain", language="English"), others[:1], 2) is None


@given(seed=st.integers(0, 10_000), shots=st.integers(1, 4))
@settings(max_examples=40)
def test_what_the_oracle_returns_suffices_and_more_never_hurts(seed: int, shots: int) -> None:
    random = Random(seed)
    items = [
        item(number, "pair", "pair", ("Kasu", "Miro")[number % 2], COLOURS[seed * number % 5], SHAPES[number % 5])
        for number in range(12)
    ]
    items += [sum_of(20 + number, OPERANDS[int(random.random() * len(OPERANDS))], "minus") for number in range(6)]
    query, *pool = shuffled(random, items)
    pointer = sufficient_pointer(query, pool, shots)
    by_id = {one.item_id: one for one in pool}
    if pointer is not None:
        assert len(set(pointer)) == shots
        assert suffices(query, [by_id[item_id] for item_id in pointer])
        assert suffices(query, pool)
    elif shots > 1:
        assert not any(suffices(query, [one]) for one in pool)


def test_pictures_show_their_colour_inside_their_frame() -> None:
    for number, frame in enumerate(FRAMES):
        scene = draw_scene("green", "square", frame, seed=number)
        pixels = render(scene).astype(int)
        assert pixels.shape == (56, 56, 3)
        column, row = (round(value) for value in scene.centre)
        assert np.abs(pixels[row, column] - np.array(PAINT["green"])).max() <= 8
    assert (render(draw_scene("red", "ring", "white", 1))[:7] == 255).all()
    assert (render(draw_scene("red", "ring", "black", 1))[:, -7:] == 0).all()
    assert set(np.unique(render(draw_scene("red", "ring", "dashed", 1))[:7])) == {0, 255}
    # grounds, places and sizes are drawn, whatever is shown
    scenes = [draw_scene("red", "ring", "white", seed) for seed in range(60)]
    assert len({scene.texture for scene in scenes}) == 5
    assert max(scene.radius for scene in scenes) - min(scene.radius for scene in scenes) > 3


def test_pictures_on_disk_are_the_rendered_ones(folder: Path) -> None:
    dataset, structures = Dataset.open(folder), read_structures(folder)
    with Image.open(dataset.image_path(0)) as picture:
        pixels = np.asarray(picture).astype(int)
    column, row = (round(value) for value in structures[0].centre)
    if structures[0].shape != "ring":
        assert np.abs(pixels[row, column] - np.array(PAINT[structures[0].colour])).max() <= 8


def test_ten_answers_are_noisy_and_their_commonest_is_the_true_one(folder: Path) -> None:
    for one in Dataset.open(folder).items:
        assert len(one.answers) == 10
        assert one.answer == majority_answer(one.answers)
        assert score_answer(one.answer or "", one.answers).accuracy == 1.0
    slips: list[float] = []
    variants = wrong = 0
    for seed in range(400):
        answers = annotate(Random(seed), "tavo", "miru")
        assert answers.count("tavo") > 5
        slips.append(score_answer("miru", answers).accuracy or 0.0)
        variants += sum(answer.lower().strip(".").removeprefix("the ") == "tavo" and answer != "tavo" for answer in answers)
        wrong += answers.count("tavoo") + answers.count("miru")
    assert set(slips) <= {0.0, 0.3, 0.6, 0.9, 1.0}
    assert {0.3, 0.6} <= set(slips)
    assert 0.07 < variants / 4000 < 0.13
    assert 0.04 < wrong / 4000 < 0.12


def test_variants_of_every_kind_of_answer_count_as_right() -> None:
    for answer in ("tavo", "tavo miru", "7"):
        for seed in range(60):
            for given_answer in annotate(Random(seed), answer, "wrong"):
                # answers that are not unanimous: unanimous ones are compared letter for letter
                is_right = score_answer(given_answer, (*(answer,) * 9, "other")).correct == 1
                assert is_right == (given_answer not in ("wrong", answer + answer[-1])), given_answer


def test_what_cannot_be_generated_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Conflict):
        generate(folder)
    with pytest.raises(InvalidConfig, match="questions_per_image"):
        generate(tmp_path / "x", questions_per_image=3)
    with pytest.raises(InvalidConfig, match="val"):
        generate(tmp_path / "x", val=0)
    for seed in (-1, 2**32):
        with pytest.raises(InvalidConfig, match=f"seed: is {seed}"):
            generate(tmp_path / "x", seed=seed)
    with pytest.raises(NotFound, match="structure file"):
        read_structures(tmp_path)
    assert not (tmp_path / "x").exists()
