"""Importers: what they read, where they find images, what they refuse; nothing is left behind by a refused import."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
import pytest

from leverplus.dataset import Dataset, DatasetInfo, Item, write_dataset
from leverplus.dataset.easy_vqa import import_easy_vqa
from leverplus.dataset.vqa import import_vqa
from leverplus.errors import Conflict, InvalidConfig, InvalidDataset, LeverPlusError, NotFound
from leverplus.ids import ItemId

QUESTIONS = [
    {"image_id": 42, "question": " what is it? ", "question_id": 420},
    {"image_id": 42, "question": "what colour?", "question_id": 421},
    {"image_id": 7, "question": "how many?", "question_id": 70},
]
ANNOTATIONS = [
    {
        "question_id": 421,
        "image_id": 42,
        "multiple_choice_answer": "red",
        "answers": [{"answer": "blue", "answer_id": 1}, {"answer": "red", "answer_id": 2}],
    },
    {"question_id": 420, "image_id": 42, "answers": [{"answer": "cat"}, {"answer": "dog"}, {"answer": "dog"}, {"answer": "cat"}]},
]


def put(folder: Path, name: str, value: Any) -> Path:
    path = folder / name
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def image(folder: Path, name: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(name.encode())


def question_file(folder: Path, questions: Any = QUESTIONS, subtype: str = "val2014", name: str = "questions.json") -> Path:
    return put(folder, name, {"questions": questions, "data_subtype": subtype})


def annotation_file(folder: Path, annotations: Any = ANNOTATIONS) -> Path:
    return put(folder, "annotations.json", {"annotations": annotations})


def run(
    folder: Path, questions: Path, annotations: Path | None = None, images: Path | None = None, split: str = "val"
) -> DatasetInfo:
    return import_vqa(
        folder, name="own", splits={split: (questions, annotations)}, image_folder=images, version="1", licence="CC BY 4.0"
    )


def test_questions_and_annotations_are_joined(tmp_path: Path) -> None:
    info = run(tmp_path / "own", question_file(tmp_path), annotation_file(tmp_path))
    assert info.splits == {"val": 3}
    assert info.answers_source == "human"
    dataset = Dataset.open(tmp_path / "own")
    first, second, third = dataset.items
    assert (first.question, first.image_id, first.question_id) == ("what is it?", "42", "420")
    assert (first.answer, first.answers) == ("cat", ("cat", "dog", "dog", "cat"))  # a tie: the first
    assert (second.answer, second.answers) == ("red", ("blue", "red"))  # multiple_choice_answer
    assert (third.answer, third.answers) == (None, ())  # not annotated
    assert {item.image for item in dataset.items} == {None}
    assert dataset.id_of_question("70") == 2


@pytest.mark.parametrize(
    "names",
    [
        ("COCO_val2014_000000000042.jpg", "COCO_val2014_000000000007.jpg"),
        ("val2014/COCO_val2014_000000000042.jpg", "val2014/COCO_val2014_000000000007.jpg"),
        ("42.jpg", "7.png"),
        ("val/42.jpeg", "COCO_val2014_000000000007.jpg"),
    ],
)
def test_images_are_found_by_the_usual_names(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        image(tmp_path / "pictures", name)
    run(tmp_path / "own", question_file(tmp_path), None, tmp_path / "pictures")
    dataset = Dataset.open(tmp_path / "own")
    assert [dataset.image_path(number).read_bytes().decode() for number in range(3)] == [names[0], names[0], names[1]]


def test_vizwiz_names_its_images(tmp_path: Path) -> None:
    entries = [
        {"image": "VizWiz_val_00000001.jpg", "question": "what?", "answers": [{"answer": "x", "answer_confidence": "yes"}]}
    ]
    image(tmp_path / "pictures", "VizWiz_val_00000001.jpg")
    run(tmp_path / "own", put(tmp_path, "val.json", entries), None, tmp_path / "pictures")
    (item,) = Dataset.open(tmp_path / "own").items
    assert (item.image, item.image_id, item.answers) == ("images/VizWiz_val_00000001.jpg", item.question_id, ("x",))


def test_textvqa_holds_answers_beside_questions(tmp_path: Path) -> None:
    data = [{"image_id": "0a1b", "question_id": 3, "question": "what does it say?", "answers": ["stop"] * 10}]
    image(tmp_path / "pictures", "0a1b.jpg")
    run(tmp_path / "own", put(tmp_path, "val.json", {"data": data}), None, tmp_path / "pictures")
    (item,) = Dataset.open(tmp_path / "own").items
    assert (item.image, item.answer, len(item.answers)) == ("images/0a1b.jpg", "stop", 10)


def test_a_dataset_does_not_lose_its_images_with_the_source(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    for name in ("42.jpg", "7.jpg"):
        image(pictures, name)
    run(tmp_path / "own", question_file(tmp_path), None, pictures)
    (pictures / "42.jpg").unlink()
    assert Dataset.open(tmp_path / "own").image_path(0).read_bytes() == b"42.jpg"


def test_question_ids_shared_by_splits_are_told_apart(tmp_path: Path) -> None:
    first = question_file(tmp_path, [{"image_id": 1, "question": "a?", "question_id": 0}], name="one.json")
    second = question_file(tmp_path, [{"image_id": 2, "question": "b?", "question_id": 0}], name="two.json")
    info = import_vqa(
        tmp_path / "own",
        name="own",
        splits={"train": (first, None), "val": (second, None)},
        image_folder=None,
        version="1",
        licence="CC0",
    )
    assert info.splits == {"train": 1, "val": 1}
    dataset = Dataset.open(tmp_path / "own")
    assert (dataset.id_of_question("train:0"), dataset.id_of_question("val:0")) == (0, 1)
    assert dataset.split_ids("val") == [1]


def test_missing_images_are_counted_with_an_example(tmp_path: Path) -> None:
    image(tmp_path / "pictures", "7.jpg")
    with pytest.raises(InvalidDataset, match=r"1 of 2 images are missing, for instance image_id 42 .*COCO_val2014_000000000042"):
        run(tmp_path / "own", question_file(tmp_path), None, tmp_path / "pictures")
    assert not (tmp_path / "own").exists()


def test_an_existing_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    put(tmp_path, "own", "mine")
    with pytest.raises(Conflict, match="exists already"):
        run(tmp_path / "own", question_file(tmp_path))
    with pytest.raises(Conflict, match="exists already"):
        import_easy_vqa(tmp_path / "own")
    assert (tmp_path / "own").read_text() == "mine"


BAD_QUESTIONS: list[tuple[Any, str]] = [
    ("{", "not JSON"),
    ("", "not JSON"),
    ({"annotations": []}, "no list under 'questions' or 'data'"),
    ({"questions": {}}, "no list"),
    ({"questions": []}, "no questions"),
    ([3], "entry 0 is no object"),
    ([{"question": "a?", "question_id": 1}], "entry 0: image_id is None"),
    ([{"question": "a?", "image_id": 1}], "entry 0: question_id is None"),
    ([{"question": "a?", "image_id": True, "question_id": 1}], "image_id is True"),
    ([{"question": "a?", "image_id": 1.5, "question_id": 1}], "image_id is 1.5"),
    ([{"question": " ", "image_id": 1, "question_id": 1}], "question is ' '"),
    ([{"question": 3, "image_id": 1, "question_id": 1}], "question is 3"),
    ([{"question": "a?", "image_id": 1, "question_id": 1}] * 2, "question_id 1 stands there twice"),
    ([{"question": "a?", "image_id": 1, "question_id": 1, "answers": "x"}], "answers are not a list"),
    ([{"question": "a?", "image_id": 1, "question_id": 1, "answers": [{"answer": 3}]}], "answers are not a list"),
    ([{"question": "a?", "image": "../../secret.jpg", "question_id": 1}], "leaves the image folder"),
    ([{"question": "a?", "image": "/etc/passwd", "question_id": 1}], "leaves the image folder"),
]


@pytest.mark.parametrize(("content", "named"), BAD_QUESTIONS)
def test_bad_question_files_are_refused(tmp_path: Path, content: Any, named: str) -> None:
    path = put(tmp_path, "questions.json", content)
    with pytest.raises(InvalidDataset, match=named) as caught:
        run(tmp_path / "own", path)
    assert str(path) in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


def test_annotations_of_other_questions_are_refused(tmp_path: Path) -> None:
    questions = question_file(tmp_path)
    with pytest.raises(InvalidDataset, match="annotates none of the 3 questions"):
        run(tmp_path / "own", questions, annotation_file(tmp_path, [{"question_id": 5, "answers": []}]))
    with pytest.raises(InvalidDataset, match="question_id 420 is about image 9"):
        run(tmp_path / "own", questions, annotation_file(tmp_path, [{"question_id": 420, "image_id": 9, "answers": []}]))
    with pytest.raises(InvalidDataset, match="question_id 420 stands there twice"):
        run(tmp_path / "own", questions, annotation_file(tmp_path, [ANNOTATIONS[1]] * 2))


def test_missing_files_and_impossible_names(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"none\.json"):
        run(tmp_path / "own", tmp_path / "none.json")
    with pytest.raises(NotFound, match="image folder"):
        run(tmp_path / "own", question_file(tmp_path), None, tmp_path / "nowhere")
    with pytest.raises(InvalidConfig, match="split"):
        run(tmp_path / "own", question_file(tmp_path), split="../val")
    with pytest.raises(InvalidConfig, match="at least one split"):
        import_vqa(tmp_path / "own", name="own", splits={}, image_folder=None, version="1", licence="CC0")


@pytest.mark.parametrize(
    ("splits", "counts"),
    [
        ({"val": ("vizwiz_val_questions.json", "vizwiz_val_annotations.json")}, {"val": 4319}),
        (
            {"train": ("okvqa_train_questions.json", None), "val": ("okvqa_val_questions.json", None)},
            {"train": 9009, "val": 5046},
        ),
    ],
)
def test_real_question_files(tmp_path: Path, splits: dict[str, tuple[str, str | None]], counts: dict[str, int]) -> None:
    folder = os.environ.get("LEVERPLUS_TEST_ANNOTATIONS")
    if folder is None or not all((Path(folder) / questions).is_file() for questions, _ in splits.values()):
        pytest.skip("LEVERPLUS_TEST_ANNOTATIONS names no folder with these question files")
    paths = {split: (Path(folder) / one, Path(folder) / two if two else None) for split, (one, two) in splits.items()}
    info = import_vqa(tmp_path / "real", name="real", splits=paths, image_folder=None, version="1", licence="CC BY 4.0")
    assert info.splits == counts
    dataset = Dataset.open(tmp_path / "real")
    answered = [item for item in dataset.items if item.answers]
    assert len(answered) == (4319 if "train" not in counts else 0)
    assert all(len(item.answers) == 10 for item in answered)


# easy-vqa


def test_a_cut_of_easy_vqa(tmp_path: Path) -> None:
    info = import_easy_vqa(tmp_path / "easy", train_images=6, test_images=5, questions_per_image=2, seed=3)
    assert info.splits == {"train": 12, "val": 4, "test": 6}
    assert (info.answers_source, info.licence, info.version) == ("replicated", "MIT", "1.0")
    dataset = Dataset.open(tmp_path / "easy")
    for item in dataset.items:
        assert item.answers == (item.answer,) * 10
        assert item.image_id.startswith("train-" if item.split == "train" else "test-")
        assert dataset.image_path(item.item_id).read_bytes().startswith(b"\x89PNG")
    images = {split: {dataset.item(number).image_id for number in dataset.split_ids(split)} for split in dataset.splits}
    assert {split: len(ids) for split, ids in images.items()} == {"train": 6, "val": 2, "test": 3}
    assert not images["val"] & images["test"]
    assert set(Counter(item.image_id for item in dataset.items).values()) == {2}


def test_the_same_seed_gives_the_same_cut_and_a_larger_one_contains_it(tmp_path: Path) -> None:
    def cut(name: str, seed: int, *, train: int = 4, test: int = 4, questions: int | None = 2) -> set[tuple[str, str]]:
        import_easy_vqa(tmp_path / name, train_images=train, test_images=test, questions_per_image=questions, seed=seed)
        return {(item.split, item.question_id) for item in Dataset.open(tmp_path / name).items}

    small = cut("a", 1)
    assert cut("b", 1) == small
    assert cut("c", 2) != small
    assert small < cut("d", 1, train=8, test=9, questions=None)


@pytest.mark.parametrize(
    "settings",
    [
        {"train_images": 0},
        {"train_images": 4001},
        {"test_images": 0},
        {"test_images": 1},
        {"test_images": 1001},
        {"questions_per_image": 0},
        {"val_share": 1.0},
        {"val_share": -0.1},
        {"name": "a/b"},
    ],
)
def test_impossible_cuts_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(LeverPlusError):
        import_easy_vqa(tmp_path / "easy", **{"train_images": 2, "test_images": 2, **settings})
    assert list(tmp_path.iterdir()) == []


def test_all_test_images_can_be_kept_for_test(tmp_path: Path) -> None:
    info = import_easy_vqa(tmp_path / "easy", train_images=1, test_images=1, questions_per_image=1, val_share=0)
    assert info.splits == {"train": 1, "test": 1}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"splits": ["train"]}, "splits is ['train'], expected an object"),
        ({"splits": {"train": "5"}}, "splits is {'train': '5'}, expected an object"),
        ({"sha256": 5}, "sha256 is 5, expected a string"),
        ({"name": None}, "name is None, expected a string"),
        ({"colour": 1}, "unexpected keyword argument 'colour'"),
    ],
)
def test_dataset_json_is_checked(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    folder = tmp_path / "toy"
    items = [Item(ItemId(0), "train", None, "i", "q", "?", "a")]
    info = write_dataset(folder, DatasetInfo("toy", "1", "CC0", "human"), items)
    (folder / "dataset.json").write_bytes(orjson.dumps({**asdict(info), **change}))
    with pytest.raises(InvalidDataset, match=re.escape(reason)):
        Dataset.open(folder)
    (folder / "dataset.json").write_text("[]")
    with pytest.raises(InvalidDataset, match="expected an object"):
        Dataset.open(folder)
