"""Writes the dataset: an ordinary folder, with structure.jsonl beside items.jsonl.

Each split is a sequence of images with the same number of questions. Everything about an image follows from the seed, the
split and its number, so a smaller cut is the beginning of a larger one, split by split. Of ten items in a row four are naming,
four pair, one operator and one plain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Literal

from PIL import Image

from leverplus.data_root import check_name
from leverplus.dataset.folder import DatasetInfo, Item, write_dataset
from leverplus.dataset.invented_words.answers import annotate
from leverplus.dataset.invented_words.families import (
    ASKED_COLUMNS,
    OPERANDS,
    OPERATIONS,
    Asked,
    Family,
    Operation,
    Structure,
    apply,
    structure_line,
    structure_path,
)
from leverplus.dataset.invented_words.scenes import FRAMES, Frame, Scene, draw_scene, render
from leverplus.dataset.invented_words.words import (
    COLOURS,
    ENGLISH_LANGUAGE,
    SHAPES,
    VALUES,
    Language,
    draw_languages,
    pick,
    shuffled,
)
from leverplus.dataset.vqa import refuse_existing
from leverplus.errors import InvalidConfig
from leverplus.files import atomic_file, atomic_folder, write_json
from leverplus.ids import ItemId
from leverplus.random_order import derive_seed

VERSION = "1"
LANGUAGES = 2
MOST_QUESTIONS_PER_IMAGE = 2
_BLOCK: tuple[Family, ...] = (
    *("naming", "naming", "naming", "naming"),
    *("pair", "pair", "pair", "pair"),
    *("operator", "plain"),
)

Size = Literal["full", "demo", "quick"]
SIZES: dict[Size, dict[str, int]] = {
    "full": {"train": 6000, "val": 1000, "test": 2000},
    "demo": {"train": 1000, "val": 300, "test": 200},
    "quick": {"train": 200, "val": 40, "test": 60},
}
"""Items a split of the named cuts."""


@dataclass(frozen=True)
class World:
    """What holds for a whole dataset: its languages, and which operation each frame stands for."""

    languages: tuple[Language, ...]
    operations: Mapping[Frame, Operation]

    @classmethod
    def draw(cls, seed: int) -> World:
        operations = shuffled(Random(derive_seed("operations", seed)), OPERATIONS)
        return cls(draw_languages(LANGUAGES, seed), dict(zip(FRAMES, operations, strict=True)))

    def language(self, name: str) -> Language:
        return next(one for one in (*self.languages, ENGLISH_LANGUAGE) if one.name == name)

    def answer(self, structure: Structure) -> str:
        if structure.operands is not None and structure.operation is not None:
            return str(apply(structure.operation, structure.operands))
        assert structure.language is not None
        language = self.language(structure.language)
        return " ".join(language.word(column, structure.value(column)) for column in ASKED_COLUMNS[structure.asked])


def generate(
    folder: Path,
    *,
    name: str = "invented-words",
    train: int = SIZES["full"]["train"],
    val: int = SIZES["full"]["val"],
    test: int = SIZES["full"]["test"],
    seed: int = 0,
    questions_per_image: int = MOST_QUESTIONS_PER_IMAGE,
) -> DatasetInfo:
    """Writes the dataset folder `folder`, whole or not at all, with so many items a split.

    The same arguments give the same bytes (PNG files: with the same Pillow; their pixels always). languages.json holds the
    words and the operations, structure.jsonl what is true of each item.
    Raises Conflict if `folder` exists, InvalidConfig for a split below one item, more than two questions an image, or a
    seed outside 0 to 2**32 - 1.
    """
    check_name(name, what="dataset")
    refuse_existing(folder)
    if not 1 <= questions_per_image <= MOST_QUESTIONS_PER_IMAGE:
        reason = f"is {questions_per_image}, expected 1 to {MOST_QUESTIONS_PER_IMAGE}"
        raise InvalidConfig(field="questions_per_image", reason=reason)
    if not 0 <= seed < 2**32:
        raise InvalidConfig(field="seed", reason=f"is {seed}, expected 0 to {2**32 - 1}")
    counts = {"train": train, "val": val, "test": test}
    for split, count in counts.items():
        if count < 1:
            raise InvalidConfig(field=split, reason=f"is {count}, a split has at least one item")
    world = World.draw(seed)
    with atomic_folder(folder) as temporary:
        write_json(temporary / "languages.json", {**asdict(world), "seed": seed})
        with atomic_file(structure_path(temporary)) as structures:

            def items() -> Iterator[Item]:
                for item, structure in _items(temporary, world, counts, seed, questions_per_image):
                    structures.write(structure_line(structure))
                    yield item

            return write_dataset(temporary, DatasetInfo(name, VERSION, "Apache-2.0", "simulated"), items())


def _items(
    folder: Path, world: World, counts: Mapping[str, int], seed: int, questions_per_image: int
) -> Iterator[tuple[Item, Structure]]:
    item_id = 0
    for split, count in counts.items():
        for start in range(0, count, questions_per_image):
            image = start // questions_per_image
            random = Random(derive_seed("image", seed, split, image))
            scene = draw_scene(
                pick(random, COLOURS), pick(random, SHAPES), pick(random, FRAMES), derive_seed("scene", seed, split, image)
            )
            path = Path("images", split, f"{image:05d}.png")
            _write_image(folder / path, scene)
            asked: set[str] = set()
            for place in range(start, min(start + questions_per_image, count)):
                structure = _draw(random, world, scene, _family(seed, split, place), ItemId(item_id), asked)
                asked.add(structure.question)
                answer = world.answer(structure)
                item = Item(
                    item_id=structure.item_id,
                    split=split,
                    image=path.as_posix(),
                    image_id=f"{split}-{image}",
                    question_id=f"{split}-{image}-{place - start}",
                    question=structure.question,
                    answer=answer,
                    answers=annotate(random, answer, _slip(random, world, structure)),
                )
                yield item, structure
                item_id += 1


def _family(seed: int, split: str, place: int) -> Family:
    block, rest = divmod(place, len(_BLOCK))
    return shuffled(Random(derive_seed("families", seed, split, block)), _BLOCK)[rest]


def _draw(random: Random, world: World, scene: Scene, family: Family, item_id: ItemId, taken: set[str]) -> Structure:
    """An item of the family whose question the image has not been asked yet."""
    while True:
        asked: Asked
        match family:
            case "naming":
                asked = pick(random, ("colour", "shape"))
            case "pair":
                asked = "pair"
            case "operator":
                asked = "operation"
            case "plain":
                asked = pick(random, ("colour", "shape", "pair"))
        operator = family == "operator"
        language = None if operator else ENGLISH_LANGUAGE if family == "plain" else pick(random, world.languages)
        structure = Structure(
            item_id=item_id,
            family=family,
            asked=asked,
            language=None if language is None else language.name,
            colour=scene.colour,
            shape=scene.shape,
            frame=scene.frame,
            operands=pick(random, OPERANDS) if operator else None,
            operation=world.operations[scene.frame] if operator else None,
            texture=scene.texture,
            centre=(round(scene.centre[0], 2), round(scene.centre[1], 2)),
            radius=round(scene.radius, 2),
        )
        if structure.question not in taken:
            return structure


def _slip(random: Random, world: World, structure: Structure) -> str:
    """What an inattentive annotator would say: the word of another value, or a number one off."""
    if structure.operands is not None and structure.operation is not None:
        result = apply(structure.operation, structure.operands)
        return str(result - 1 if result else 1)
    assert structure.language is not None
    language, columns = world.language(structure.language), ASKED_COLUMNS[structure.asked]
    wrong = pick(random, columns)
    words: list[str] = []
    for column in columns:
        values = VALUES[column]
        if column == wrong:
            values = tuple(value for value in values if value != structure.value(column))
            words.append(language.word(column, pick(random, values)))
        else:
            words.append(language.word(column, structure.value(column)))
    return " ".join(words)


def _write_image(path: Path, scene: Scene) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(render(scene)).save(path, format="PNG")
