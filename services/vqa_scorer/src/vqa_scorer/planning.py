"""From a request to prompts: every fault is found here, before anything is enqueued."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset, no_such_dataset
from leverplus.errors import InvalidInput
from leverplus.fingerprint import digest
from leverplus.ids import ItemId, Pointer, check_pointer
from leverplus.images import FileVersion, file_version, read_image
from leverplus.metric import answer_texts
from leverplus.prompts import Shot
from leverplus.scoring import ScoreOptions, ScoreRequest
from leverplus.store import ScoreKey
from vqa_scorer.engines import ScoringPrompt

_ANNOTATORS = 10
_OPEN_DATASETS = 4
_REMEMBERED_IMAGES = 200_000
_DECODED_AT_ONCE = 4
"""Images in memory at a time, whatever the number of requests."""
_LONGEST_RATIO = 200
"""Of an image's sides: Qwen's image processors refuse more, and in a batch that would fail for others, too."""


@dataclass(frozen=True)
class OpenDataset:
    dataset: Dataset
    digest: str


class OpenDatasets:
    """Datasets below the data root, opened on demand and again when their dataset.json changed. For several threads."""

    def __init__(self, root: DataRoot) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[str, int], OpenDataset] = OrderedDict()

    def get(self, name: str) -> OpenDataset:
        """NotFound for a name without a folder, InvalidDataset for a broken one."""
        folder = self._root.dataset(name)
        try:
            key = (name, (folder / "dataset.json").stat().st_mtime_ns)
        except OSError:  # also a link in a circle
            raise no_such_dataset(folder) from None
        with self._lock:
            if key not in self._open:
                dataset = Dataset.open(folder)
                self._open[key] = OpenDataset(dataset, digest(dataset.fingerprint()))
                while len(self._open) > _OPEN_DATASETS:
                    self._open.popitem(last=False)
            self._open.move_to_end(key)
            return self._open[key]


@dataclass(frozen=True)
class ScorePlan:
    """A request that passed every check which needs no image: `queries` in its order, pointers checked."""

    opened: OpenDataset
    options: ScoreOptions
    queries: tuple[tuple[ItemId, tuple[Pointer, ...]], ...]

    def text_keys(self) -> list[ScoreKey]:
        """Distinct keys in order."""
        return list(dict.fromkeys((query_id, pointer) for query_id, pointers in self.queries for pointer in pointers))

    def weighed_keys(self) -> list[ScoreKey]:
        """Distinct keys that probabilities of answers are needed for, in order."""
        keys: dict[ScoreKey, None] = {}
        for query_id, pointers in self.queries:
            for pointer in pointers:
                keys.update(dict.fromkeys((query_id, part) for part in self.weighed(query_id, pointer)))
        return list(keys)

    def weighed(self, query_id: ItemId, pointer: Pointer) -> tuple[Pointer, ...]:
        """Behind which pointers the options need probabilities for this one: itself, for info_score also what is left of it
        without its first demonstration. None for a query without an answer."""
        if self.options.info_score and pointer and self.own_answer(query_id) is not None:
            return pointer, pointer[1:]
        return (pointer,) if self.options.gt_prob and self.answers(query_id) else ()

    def answers(self, query_id: ItemId) -> tuple[str, ...]:
        """What probabilities are asked of: the annotators' distinct answers and the query's own. The same for every pointer and
        option, so that what was computed for one serves the others."""
        item = self.opened.dataset.item(query_id)
        return answer_texts([*item.answers, *([] if item.answer is None else [item.answer])])

    def own_answer(self, query_id: ItemId) -> str | None:
        """The answer whose probability the InfoScore compares; None where there is none but blanks."""
        return (self.opened.dataset.item(query_id).answer or "").strip() or None

    @property
    def places_a_pointer(self) -> int:
        """How many pieces of work one pointer may be: its text, probabilities behind it, and those it is compared with."""
        return 3 if self.options.info_score else 2 if self.options.gt_prob else 1

    def count_images(self, item_ids: Iterable[ItemId]) -> int:
        """Distinct image files of these items; an item without an image has none."""
        dataset = self.opened.dataset
        return len({image for item_id in dict.fromkeys(item_ids) if (image := dataset.item(item_id).image) is not None})

    def slices(self, pointers: int) -> Iterator[Slice]:
        """The plan in parts of at most so many pointers: runs of whole queries; a query with more than that is cut."""
        run: list[tuple[ItemId, tuple[Pointer, ...]]] = []
        size = 0
        for query_id, asked in self.queries:
            if run and size + len(asked) > pointers:
                yield Slice(replace(self, queries=tuple(run)))
                run, size = [], 0
            if len(asked) <= pointers:
                run.append((query_id, asked))
                size += len(asked)
                continue
            for start in range(0, len(asked), pointers):
                part = ((query_id, asked[start : start + pointers]),)
                yield Slice(replace(self, queries=part), goes_on=start + pointers < len(asked))
        if run:
            yield Slice(replace(self, queries=tuple(run)))


@dataclass(frozen=True)
class Slice:
    """A part of a plan; `goes_on` where it holds one query, further pointers of which are in the next slice."""

    plan: ScorePlan
    goes_on: bool = False


def plan_request(
    request: ScoreRequest, datasets: OpenDatasets, reserved: frozenset[str] = frozenset(), *, has_probabilities: bool = True
) -> ScorePlan:
    """Checks ids, pointers, answers of demonstrations, options, and that no text holds one of the model's `reserved` ones."""
    options = request.options
    asked = [name for name in ("gt_prob", "info_score") if getattr(options, name)]
    if asked and not has_probabilities:
        raise InvalidInput(
            f"options.{asked[0]} needs the probabilities of answers, which this scorer's engine does not give; leave it out, or "
            "run the scorer on a model directory",
            option=asked[0],
        )
    opened = datasets.get(request.dataset)
    dataset = opened.dataset
    queries: list[tuple[ItemId, tuple[Pointer, ...]]] = []
    for query in request.queries:
        item = dataset.item(query.query_id)
        if options.strict and len(item.answers) < _ANNOTATORS:
            raise InvalidInput(
                f"query {item.item_id} has {len(item.answers)} answers, strict scoring needs {_ANNOTATORS}; "
                "leave options.strict out to score it with the fallback",
                query_id=item.item_id,
            )
        pointers = tuple(check_pointer(pointer, query_id=query.query_id, item_count=len(dataset)) for pointer in query.pointers)
        queries.append((item.item_id, pointers))
    demonstrations = dict.fromkeys(shot for _, pointers in queries for pointer in pointers for shot in pointer)
    for item_id in demonstrations:
        answer = dataset.item(item_id).answer
        if answer is None:
            raise InvalidInput(f"item {item_id} has no answer, so it cannot be a demonstration", item_id=item_id)
        _check_text(item_id, "answer", answer, reserved)
    for item_id in dict.fromkeys([*(item_id for item_id, _ in queries), *demonstrations]):
        _check_text(item_id, "question", dataset.item(item_id).question, reserved)
    plan = ScorePlan(opened, options, tuple(queries))
    for item_id in dict.fromkeys(item_id for item_id, _ in plan.weighed_keys()):
        for answer in plan.answers(item_id):
            _check_text(item_id, "answer", answer, reserved)
    return plan


def _check_text(item_id: ItemId, field: str, text: str, reserved: frozenset[str]) -> None:
    found = next((mark for mark in sorted(reserved) if mark in text), None)
    if found is not None:
        raise InvalidInput(
            f"the {field} of item {item_id} holds {found!r}, which the model reads as a mark of its own and not as text; "
            "leave the item out, or import the dataset without it",
            item_id=item_id,
        )


class ReadableImages:
    """Remembers which image files were decoded without a fault, so that each is checked once. For several threads."""

    def __init__(self) -> None:
        self._seen: OrderedDict[FileVersion, None] = OrderedDict()
        self._lock = threading.Lock()
        self._places = threading.Semaphore(_DECODED_AT_ONCE)

    def check(self, paths: Iterable[Path]) -> None:
        """InvalidInput naming the first file that is no readable image, or one too long for its width."""
        for path in paths:
            version = file_version(path)
            with self._lock:
                if version in self._seen:
                    continue
            with self._places:
                width, height = read_image(path).size
            if max(width, height) > _LONGEST_RATIO * min(width, height):
                raise InvalidInput(
                    f"image {path} has {width} × {height} pixels, one side may have at most {_LONGEST_RATIO} times those of the "
                    "other; crop it, or leave the item out",
                    image=str(path),
                )
            with self._lock:
                self._seen[version] = None
                while len(self._seen) > _REMEMBERED_IMAGES:
                    self._seen.popitem(last=False)


def build_prompts(plan: ScorePlan, keys: Iterable[ScoreKey], images: ReadableImages) -> dict[ScoreKey, ScoringPrompt]:
    """A prompt for each key; NotFound or InvalidInput naming an item without an image or with one that cannot be read."""
    shots: dict[ItemId, Shot] = {}

    def shot(item_id: ItemId) -> Shot:
        if item_id not in shots:
            item = plan.opened.dataset.item(item_id)
            shots[item_id] = Shot(plan.opened.dataset.image_path(item_id), item.question, item.answer)
        return shots[item_id]

    def query_shot(item_id: ItemId) -> Shot:
        solved = shot(item_id)
        return Shot(solved.image, solved.question)

    prompts = {
        (query_id, pointer): ScoringPrompt(tuple(shot(item_id) for item_id in pointer), query_shot(query_id))
        for query_id, pointer in keys
    }
    images.check(dict.fromkeys(value.image for value in shots.values()))
    return prompts
