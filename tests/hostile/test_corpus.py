"""Broken RL files, checkpoints, images and datasets: a 4xx or a LeverPlusError each, health as before, nothing written."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from hostile_corpus import Damage, Runs, checkpoint_damages, dataset_damages, images, pt_files, rl_files
from hostile_services import CHECKPOINT, DATASET, write_data

from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset
from leverplus.embeddings.reference import read_pair
from leverplus.errors import LeverPlusError
from leverplus.images import read_image
from leverplus.selector import import_reference
from pointer_trainer.app import create_app as create_trainer
from pointer_trainer.settings import TrainerSettings
from selector_api.app import create_app as create_selector
from selector_api.settings import SelectorSettings
from vqa_scorer.app import create_app as create_scorer
from vqa_scorer.engines.echo import EchoEngine
from vqa_scorer.settings import ScorerSettings

RL_FILES, IMAGES, PT_FILES = dict(rl_files()), dict(images()), dict(pt_files())


class World:
    """The three applications over one data root."""

    def __init__(self, root: DataRoot, scorer: TestClient, trainer: TestClient, selector: TestClient) -> None:
        self.root, self.scorer, self.trainer, self.selector = root, scorer, trainer, selector

    def written(self) -> dict[str, str]:
        """Every path below the data root with what it holds; but for the database, of which SQLite rewrites files as it reads."""
        return {
            str(path.relative_to(self.root.path)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            for path in sorted(self.root.path.rglob("*"))
            if not path.name.startswith("store.sqlite")
        }

    def require_health(self) -> None:
        assert self.scorer.get("/health/ready").status_code == 200
        assert self.selector.get("/health/ready").status_code == 200
        assert self.trainer.get("/health/live").status_code == 200
        assert self.selector.get("/select?query_id=1").status_code == 200


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Generator[World]:
    root = DataRoot(tmp_path_factory.mktemp("hostile") / "data")
    write_data(root)
    apps = (
        create_scorer(ScorerSettings(data=root.path, vlm=root.path), engine=EchoEngine()),
        create_trainer(TrainerSettings(data=root.path, redis_url="redis://127.0.0.1:1/0", max_upload_mib=2)),
        create_selector(SelectorSettings(data=root.path)),
    )
    with ExitStack() as end:
        scorer, trainer, selector = (end.enter_context(TestClient(app, raise_server_exceptions=False)) for app in apps)
        found = World(root, scorer, trainer, selector)
        for _ in range(1000):
            if scorer.get("/health/ready").status_code == 200:
                break
        assert scorer.post("/score", json=score(DATASET)).status_code == 200, "once, so that the database is there"
        found.require_health()
        yield found


@pytest.fixture
def unchanged(world: World) -> Generator[World]:
    """The world, which must be as it was when the test ends; and no pickle has run."""
    before = world.written()
    yield world
    assert world.written() == before
    assert not Path(Runs.mark).exists()
    world.require_health()


@pytest.mark.parametrize(
    "image", ["http://127.0.0.1:9/a.png", "file:///etc/passwd", "/etc/passwd", "data:image/png,http://x", "data:"]
)
def test_an_address_is_no_image(image: str, unchanged: World):
    answer = unchanged.selector.post("/select", json={"queries": [{"image": image, "question": "what?"}]})
    assert 400 <= answer.status_code < 500, answer.text[:300]


def score(dataset: str, *pointer: int) -> dict[str, object]:
    return {"dataset": dataset, "queries": [{"query_id": 0, "pointers": [list(pointer)]}]}


def test_the_corpus_is_large():
    assert len(RL_FILES) + len(IMAGES) + len(PT_FILES) >= 200


@pytest.mark.parametrize("name", RL_FILES)
def test_a_broken_rl_file(name: str, unchanged: World):
    answer = unchanged.trainer.post(f"/rl-data?dataset={DATASET}", content=RL_FILES[name])
    assert 400 <= answer.status_code < 500, answer.text[:300]
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(answer.content) < 20_000


@pytest.mark.parametrize("name", IMAGES)
def test_a_broken_image_that_is_sent(name: str, unchanged: World):
    query = {"image": base64.b64encode(IMAGES[name]).decode(), "question": "what?"}
    answer = unchanged.selector.post("/select", json={"queries": [query]})
    assert 400 <= answer.status_code < 500, answer.text[:300]
    with pytest.raises(LeverPlusError):
        read_image(IMAGES[name])


@pytest.mark.parametrize("name", IMAGES)
def test_a_broken_image_of_a_dataset(name: str, world: World):
    folder = world.root.dataset("spoilt")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(world.root.dataset(DATASET), folder)
    (folder / "images" / "0.png").write_bytes(IMAGES[name])
    before = world.written()
    answer = world.scorer.post("/score", json=score("spoilt", 3, 4))
    assert 400 <= answer.status_code < 500, answer.text[:300]
    assert world.written() == before
    world.require_health()


@pytest.mark.parametrize("image", ["../../../keys", "/etc/passwd", "../numbers/items.jsonl", "link.png", "images/loop.png"])
def test_an_image_outside_the_folder_is_not_shown(image: str, world: World):
    folder = world.root.dataset("outside")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(world.root.dataset(DATASET), folder)
    (world.root.path.parent / "keys").write_text("secret")
    (folder / "link.png").symlink_to("/etc/passwd")
    (folder / "images" / "loop.png").symlink_to("loop.png")
    rename_images(folder, image)
    assert 400 <= world.selector.get("/items/outside/0/image").status_code < 500
    assert 400 <= world.scorer.post("/score", json=score("outside", 3, 4)).status_code < 500
    world.require_health()


def rename_images(folder: Path, image: str) -> None:
    lines = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    (folder / "items.jsonl").write_text("".join(json.dumps({**line, "image": image}) + "\n" for line in lines))
    fit_hash(folder)


def fit_hash(folder: Path) -> None:
    """dataset.json says what items.jsonl holds now, where both are files."""
    info, items = folder / "dataset.json", folder / "items.jsonl"
    try:
        described = json.loads(info.read_text())
        described["sha256"] = hashlib.sha256(items.read_bytes()).hexdigest()
        info.write_text(json.dumps(described))
    except (OSError, ValueError, TypeError, RecursionError):
        return


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> DataRoot:
    root = DataRoot(tmp_path_factory.mktemp("good") / "data")
    write_data(root)
    return root


def require_refused(
    world: World,
    damages: Mapping[str, Damage],
    good: Path,
    place: Callable[[str], Path],
    ask: Callable[[Path], dict[str, httpx.Response]],
    accepted: Mapping[str, Collection[int]],
) -> None:
    """Each damage, done to a copy of `good` at `place`, is answered as accepted, leaves nothing behind, and the services well."""
    wrong: dict[str, object] = {}
    for number, (name, damage) in enumerate(damages.items()):
        folder = place(f"broken{number}")
        shutil.copytree(good, folder)
        damage(folder)
        before = world.written()
        answers = ask(folder)
        statuses = {asked: answer.status_code for asked, answer in answers.items()}
        if any(status not in accepted[asked] for asked, status in statuses.items()):
            wrong[name] = statuses, next(iter(answers.values())).text[:200]
        elif world.written() != before:
            wrong[name] = "written"
        shutil.rmtree(folder)
    assert not wrong, json.dumps(wrong, indent=1)
    assert len(damages) >= 100
    world.require_health()


REFUSED = range(400, 500)


def test_broken_checkpoints(world: World, good: DataRoot):
    def ask(folder: Path) -> dict[str, httpx.Response]:
        return {
            "promote": world.trainer.post(
                f"/checkpoints/{folder.name}/promote", json={"alias": "other", "by": "me", "reason": "try"}
            ),
            "select": world.selector.get(f"/select?query_id=1&checkpoint={folder.name}"),
            "list": world.trainer.get("/checkpoints"),
        }

    checkpoint = good.checkpoint(CHECKPOINT)
    accepted = {"promote": REFUSED, "select": REFUSED, "list": {200}}
    require_refused(world, dict(checkpoint_damages(checkpoint)), checkpoint, world.root.checkpoint, ask, accepted)


def test_broken_datasets(world: World, good: DataRoot):
    def ask(folder: Path) -> dict[str, httpx.Response]:
        return {
            "score": world.scorer.post("/score", json=score(folder.name, 3, 4)),
            "image": world.selector.get(f"/items/{folder.name}/0/image"),
            "upload": world.trainer.post(f"/rl-data?dataset={folder.name}", content=b"{"),
            "embed": world.trainer.post("/embeddings", json={"dataset": folder.name}),
            "list": world.trainer.get("/datasets"),
        }

    def and_its_hash(damage: Damage) -> Damage:
        def both(folder: Path) -> None:
            damage(folder)
            fit_hash(folder)

        return both

    dataset = good.dataset(DATASET)
    damages = {name: and_its_hash(damage) for name, damage in dataset_damages(dataset)}
    # 503: the dataset is taken for whole, and the broker is away.
    accepted = {"score": REFUSED, "image": REFUSED, "upload": REFUSED, "embed": {404, 422, 503}, "list": {200}}
    require_refused(world, damages, dataset, world.root.dataset, ask, accepted)


@pytest.mark.parametrize("name", PT_FILES)
def test_a_broken_pt_file(name: str, tmp_path: Path, good: DataRoot):
    path = tmp_path / "foreign.pt"
    path.write_bytes(PT_FILES[name])
    with pytest.raises(LeverPlusError):
        import_reference(path)
    with pytest.raises(LeverPlusError):
        read_pair((path, path), Dataset.open(good.dataset("numbers")))
    assert not Path(Runs.mark).exists()


def test_a_good_file_is_taken(world: World):
    """The corpus is refused for what is wrong with it, and not for what all of it has."""
    candidate = {"pointer": [1, 2], "gen_method": "random", "vqa_correct": 1, "vqa_acc_score": 1.0, "vqa_eval_mode": "file"}
    record = {"0": {"candidate_pool_ids": [1, 2, 3], "pointer_candidates": [candidate]}}
    assert world.trainer.post(f"/rl-data?dataset={DATASET}", json=record).status_code == 200
