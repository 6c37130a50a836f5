"""Each fault of a set-up, made and found."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

import numpy as np
import orjson
import pytest
from redis import Redis
from sqlalchemy import create_engine, make_url, text
from typer.testing import CliRunner

from leverplus.checkpoints import FORMAT, CheckpointInfo, save_checkpoint
from leverplus.cli import app
from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset, DatasetInfo, Item, write_dataset
from leverplus.deployments import promote
from leverplus.doctor import data, data_findings, installation, reachable, settings, settings_findings
from leverplus.doctor.finding import Finding, checked
from leverplus.doctor.installation import Driver, TorchBuild, constrained, cuda, nvidia_driver
from leverplus.embeddings import Block, EmbeddingManifest, Embeddings
from leverplus.fingerprint import Fingerprint
from leverplus.ids import ItemId
from leverplus.keys import new_key
from leverplus.launcher import EmbeddedValkey
from leverplus.pools import PoolPolicy, Pools
from leverplus.selector.config import SelectorConfig, tensor_shapes
from leverplus.store import open_store

REPOSITORY = Path(__file__).parents[2]
MODEL = REPOSITORY / "assets" / "in-context-vlm"


def of(check: Callable[[], str]) -> tuple[str, str]:
    finding = checked("it", check)
    return finding.state, finding.found


def named(findings: Iterable[Finding], what: str) -> tuple[str, str]:
    return next((finding.state, finding.found) for finding in findings if finding.what == what)


# Installation

CPU, CUDA_13 = TorchBuild("2.13.0+cpu", None, False), TorchBuild("2.13.0", (13, 0), False)
WORKING = TorchBuild("2.13.0", (12, 9), True)


@pytest.mark.parametrize(
    ("build", "driver", "device", "state", "told"),
    [
        (None, None, "auto", "ok", "no torch"),
        (CPU, None, "auto", "ok", "a CPU build"),
        (CPU, Driver("570.1", (12, 8), 2), "auto", "WRONG", "CPU build, and nvidia-smi sees 2 GPU.s.: install its CUDA build"),
        (CPU, Driver("570.1", (12, 8), 2), "cpu", "ok", "a CPU build"),
        (CPU, None, "cuda:1", "WRONG", "LEVERPLUS_DEVICE: is cuda:1, and torch .* is a CPU build"),
        (CUDA_13, None, "auto", "note", "no NVIDIA driver: it runs on the processor"),
        (CUDA_13, None, "cuda", "WRONG", "no NVIDIA driver answers .*LEVERPLUS_DEVICE=cpu"),
        (CUDA_13, Driver("535.2", (12, 2), 1), "auto", "WRONG", "535.2 runs CUDA up to 12.2, .* built for CUDA 13.0: update the"),
        (CUDA_13, Driver("590.1", (13, 1), 1), "auto", "WRONG", "cannot use a GPU though driver 590.1 is there"),
        (WORKING, Driver("535.2", (12, 2), 1), "auto", "ok", "built for CUDA 12.9, driver 535.2"),
    ],
)
def test_torch_and_driver(build: TorchBuild | None, driver: Driver | None, device: str, state: str, told: str):
    found = of(lambda: cuda(build, driver, device))
    assert found[0] == state
    assert re.search(told, found[1])


def test_the_driver_is_what_nvidia_smi_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert nvidia_driver() is None
    program = tmp_path / "nvidia-smi"
    table = "| NVIDIA-SMI 535.183.01             Driver Version: 535.183.01     CUDA Version: 12.2     |"
    program.write_text(f'#!/bin/sh\nif [ "$1" = -L ]; then echo "GPU 0: A"; echo "GPU 1: B"; else echo "{table}"; fi\n')
    program.chmod(0o755)
    assert nvidia_driver() == Driver("535.183.01", (12, 2), 2)
    assert named(installation.installation_findings({}), "cuda")[0] == "WRONG"
    program.write_text("#!/bin/sh\necho 'no driver'; exit 9\n")
    assert nvidia_driver() is None


@pytest.mark.parametrize(("redis_url", "state"), [("", "WRONG"), ("redis://broker", "note")])
def test_what_is_not_installed(redis_url: str, state: str, monkeypatch: pytest.MonkeyPatch):
    version = installation.metadata.version

    def without(name: str) -> str:
        if name in ("celery", "leverplus-vqa-scorer"):
            raise installation.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(installation.metadata, "version", without)
    found = {finding.what: finding for finding in installation.installation_findings({"REDIS_URL": redis_url})}
    assert found["leverplus-vqa-scorer"].state == state
    assert (found["celery"].state, found["leverplus-pointer-trainer"].state) == ("WRONG", "ok")


def test_versions_beside_the_constraints():
    state, told = of(lambda: constrained("# tried\nnumpy==0.0.1\nno-such-package==1\n"))
    assert state == "note"
    assert re.search(r"^numpy [\d.]+ \(tried: 0\.0\.1\); `pip install --constraint", told)
    assert of(lambda: constrained(f"numpy=={np.__version__}\n")) == ("ok", "1 packages have the versions of constraints.txt")


# Settings


def test_a_mistyped_variable_is_named_with_the_nearest():
    found = settings_findings({"LEVERPLUS_RETENTION_DAY": "3", "LEVERPLUS_XYZZY": "", "HOME": "/"}, MODEL)
    state, told = named(found, "variables")
    assert state == "WRONG"
    assert "LEVERPLUS_RETENTION_DAY is read by nobody: is LEVERPLUS_RETENTION_DAYS meant?" in told
    assert "LEVERPLUS_XYZZY is read by nobody; unset it" in told


def test_every_variable_that_anything_reads_is_known():
    places = [*REPOSITORY.glob("services/*/src/**/*.py"), *REPOSITORY.glob("shared/src/leverplus/**/*.py")]
    places = [path for path in places if path.name != "settings.py" or path.parent.name != "doctor"]
    places += [*REPOSITORY.glob("docker-compose*.yml"), REPOSITORY / ".env.example"]
    read = {name for path in places for name in re.findall(r"LEVERPLUS_[A-Z_]*[A-Z]\b(?![_*(])", path.read_text())}
    assert read - settings.KNOWN == set()
    assert settings.KNOWN - read == set()


@pytest.mark.parametrize(
    ("variable", "value", "service"),
    [
        ("LEVERPLUS_BATCH_SIZE", "many", "vqa_scorer"),
        ("LEVERPLUS_RETENTION_DAYS", "-1", "pointer_trainer"),
        ("LEVERPLUS_ACCESS_LOG", "2", "selector_api"),
        ("LEVERPLUS_HOST", "0.0.0.0", "selector_api"),
    ],
)
def test_a_value_that_a_service_refuses(variable: str, value: str, service: str):
    state, told = named(settings_findings({variable: value}, MODEL), f"settings of {service}")
    assert state == "WRONG"
    assert variable in told
    assert value in told
    assert named(settings_findings({}, MODEL), f"settings of {service}") == ("ok", "valid")


def test_the_key_file(tmp_path: Path):
    path = tmp_path / "keys"
    assert "cannot be read" in of(lambda: settings.keys(path))[1]
    path.write_text("alice admin nothing\n")
    assert of(lambda: settings.keys(path))[0] == "WRONG"
    path.write_text(new_key("alice", "admin")[1])
    path.chmod(0o622)
    assert of(lambda: settings.keys(path))[1].endswith(f"`chmod go-w {path}`")
    path.chmod(0o640)
    assert of(lambda: settings.keys(path)) == ("ok", f"{path}, mode 640")


def test_the_model(tmp_path: Path):
    def found() -> tuple[str, str]:
        return named(settings_findings({}, tmp_path), "model")

    assert "no config.json" in found()[1]
    (tmp_path / "config.json").write_text("{")
    assert "no model's configuration" in found()[1]
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    assert "no weights" in found()[1]
    (tmp_path / "model.safetensors").write_bytes(b"x" * 2**20)
    assert found() == ("ok", f"{tmp_path}, qwen2_5_vl, 1.0 MiB of weights")
    assert named(settings_findings({}, None), "model")[0] == "ok"


# What is reached


@pytest.fixture
def valkey(tmp_path: Path) -> Generator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path / "valkey") as server:
        yield server


def test_the_broker(valkey: EmbeddedValkey):
    assert of(lambda: reachable.broker(None))[0] == "ok"
    assert of(lambda: reachable.broker(valkey.url))[0] == "ok"
    assert of(lambda: reachable.clock(time.time(), valkey.url))[0] == "ok"
    with Redis(port=valkey.port) as redis:
        redis.config_set("maxmemory-policy", "allkeys-lru")
        state, told = of(lambda: reachable.broker(valkey.url))
        assert state == "WRONG"
        assert "CONFIG SET maxmemory-policy noeviction" in told
        redis.config_set("maxmemory-policy", "noeviction")
        redis.replicaof("127.0.0.1", "1")
        assert "is a replica" in of(lambda: reachable.broker(valkey.url))[1]
        redis.replicaof("NO", "ONE")
        redis.acl_setuser("tight", enabled=True, passwords=["+secret"], commands=["+ping", "+hello", "+client"], keys=["*"])
    state, told = of(lambda: reachable.broker(f"redis://tight:secret@127.0.0.1:{valkey.port}/0"))
    assert state == "note"
    assert "allow INFO" in told
    valkey.stop()
    state, told = of(lambda: reachable.broker(f"redis://:secret@127.0.0.1:{valkey.port}/0"))
    assert state == "WRONG"
    assert "start it, correct REDIS_URL" in told
    assert "secret" not in told


def test_an_old_broker(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reachable, "_redis_info", lambda _: {"redis_version": "6.0.16", "role": "master"})
    assert of(lambda: reachable.broker(valkey.url)) == (
        "note",
        f"Redis 6.0.16 at {valkey.url} is older than what was tried (7.0)",
    )


def test_the_clock(valkey: EmbeddedValkey):
    assert "1970; set it" in of(lambda: reachable.clock(5.0, None))[1]
    assert of(lambda: reachable.clock(time.time() + 60, valkey.url)) == (
        "WRONG",
        "clock: it is 60 s ahead of the broker's: keep both by NTP",
    )
    assert "behind" in of(lambda: reachable.clock(time.time() - 60, valkey.url))[1]


def test_the_database(database_url: str, tmp_path: Path):
    is_sqlite = database_url.startswith("sqlite")

    def found() -> tuple[str, str]:
        return of(lambda: reachable.sqlite_store(tmp_path / "store.sqlite") if is_sqlite else reachable.database(database_url))

    assert found()[0] == "ok"
    open_store(database_url).dispose()
    newest = found()[1].rpartition(" ")[2]
    assert newest.isdecimal()
    engine = create_engine(database_url)
    for revision, state, told in (
        ("0001", "ok", f"schema 0001: services bring it to {newest}"),
        ("9999", "WRONG", "update the code"),
    ):
        with engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
        assert found()[0] == state
        assert told in found()[1]
    engine.dispose()


def test_a_database_that_is_away_or_none(postgresql_url: str):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://me:secret@127.0.0.1:{silent.getsockname()[1]}/db"
    state, told = of(lambda: reachable.database(url))
    assert state == "WRONG"
    assert "secret" not in told
    assert "correct DATABASE_URL" in told
    missing = make_url(postgresql_url).set(database="nowhere").render_as_string(hide_password=False)
    assert 'database "nowhere" does not exist' in of(lambda: reachable.database(missing))[1]
    assert "not supported" in of(lambda: reachable.database("mysql://host/db"))[1]


# Data


@pytest.fixture
def root(tmp_path: Path) -> DataRoot:
    """Dataset `toy` with an image, its embeddings, checkpoints ckpt-a and ckpt-b, the second deployed over the first."""
    root = DataRoot(tmp_path / "data")
    folder = root.dataset("toy")
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "one.png").write_bytes(b"png")
    items = [Item(ItemId(n), "train", "images/one.png", str(n), str(n), f"what is {n}?", "a", ("a",)) for n in range(10)]
    write_dataset(folder, DatasetInfo("toy", "1", "CC0-1.0", "human"), items)
    dataset = Dataset.open(folder)
    vectors = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)
    manifest = EmbeddingManifest({"name": "drawn"}, dataset.info.sha256, (Block("joint", 0, 4),), 4, 10, "same", "encoders")
    embeddings = Embeddings(vectors, vectors, manifest)
    embeddings.save(root.embeddings("toy"))
    embeddings = Embeddings.open(root.embeddings("toy"), dataset)
    config, policy = SelectorConfig(d_model=4, hidden_dim=8), PoolPolicy("random", k=5)
    fingerprint = Fingerprint(dataset=dataset.fingerprint(), pool=Pools(dataset, embeddings, policy).fingerprint())
    tensors = {name: np.full(shape, 0.1, dtype=np.float32) for name, shape in tensor_shapes(config).items()}
    for name in ("ckpt-a", "ckpt-b"):
        info = CheckpointInfo(
            checkpoint_id=name,
            format=FORMAT,
            selector=config.to_json(),
            dataset="toy",
            pool_policy=policy.to_json(),
            shots=[2],
            fingerprint=fingerprint,
            training={},
            rl_data=[],
            metrics={},
            code_version="0.1.0",
            created_at="2026-01-01T00:00:00+00:00",
        )
        save_checkpoint(root.checkpoint(name), tensors, info)
        promote(root, "production", name, by="test", reason="first")
    return root


def states(root: DataRoot) -> dict[str, tuple[str, str]]:
    return {finding.what: (finding.state, finding.found) for finding in data_findings(root.path)}


def test_a_sound_folder(root: DataRoot):
    found = states(root)
    assert {state for state, _ in found.values()} <= {"ok", "note"}
    assert found["dataset toy"][1].startswith("10 items, 1 images, sha256 ")
    assert found["checkpoints"] == ("ok", "2, made for the data that lies here")
    assert found["deployment production"][1].startswith("ckpt-b, promoted ")


def test_an_image_is_missing(root: DataRoot):
    (root.dataset("toy") / "images" / "one.png").unlink()
    state, told = states(root)["dataset toy"]
    assert state == "WRONG"
    assert "1 of 1 images are missing, e.g. images/one.png; import again" in told


def test_a_dataset_is_another_than_checkpoints_were_made_for(root: DataRoot):
    folder = root.dataset("toy")
    items = list(Dataset.open(folder).items)
    write_dataset(folder, DatasetInfo("toy", "2", "CC0-1.0", "human"), items[:9])
    found = states(root)
    assert found["embeddings toy"][0] == "WRONG"
    assert found["deployment production"][0] == "WRONG"
    assert found["checkpoints"] == (
        "note",
        "2 of 2 were made for other data than lies here and cannot be served: ckpt-a, ckpt-b",
    )


def test_embeddings_are_others_than_checkpoints_were_made_for(root: DataRoot):
    dataset = Dataset.open(root.dataset("toy"))
    vectors = np.random.default_rng(1).standard_normal((10, 4)).astype(np.float32)
    manifest = EmbeddingManifest({"name": "others"}, dataset.info.sha256, (Block("joint", 0, 4),), 4, 10, "same", "encoders")
    Embeddings(vectors, vectors, manifest).save(root.embeddings("toy"), overwrite=True)
    state, told = states(root)["deployment production"]
    assert state == "WRONG"
    assert "pool.embeddings" in told
    assert "promote another under 'production', or roll it back" in told


def test_a_deployment_whose_checkpoints_are_gone_or_broken(root: DataRoot):
    shutil.rmtree(root.checkpoint("ckpt-a"))
    assert states(root)["deployment production"] == ("note", "ckpt-b; ckpt-a, which it would roll back to, is gone")
    model = root.checkpoint("ckpt-b") / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    assert states(root)["deployment production"][0] == "WRONG"
    (root.checkpoint("ckpt-b") / "checkpoint.json").write_text("{")
    assert "`leverplus checkpoints delete ckpt-b`" in states(root)["checkpoint ckpt-b"][1]
    shutil.rmtree(root.checkpoint("ckpt-b"))
    state, told = states(root)["deployment production"]
    assert state == "WRONG"
    assert "no checkpoint 'ckpt-b'" in told
    root.deployment("production").write_text("[]")
    assert "promote a checkpoint with an override" in states(root)["deployment production"][1]


def test_room_and_rights(root: DataRoot, monkeypatch: pytest.MonkeyPatch):
    usage = type(shutil.disk_usage(root.path))
    for free, state in ((2**29, "WRONG"), (5 * 2**30, "note"), (50 * 2**30, "ok")):
        monkeypatch.setattr(data.shutil, "disk_usage", lambda _, free=free: usage(100 * 2**30, 100 * 2**30 - free, free))
        assert states(root)["disk of the data"][0] == state
        assert states(root)["disk of temporary files"][0] == state

    def refuse(dir: Path) -> None:
        if dir.name == "runs":
            raise PermissionError(13, "Permission denied")
        return open(os.devnull, "wb")  # type: ignore[return-value]  # noqa: PTH123

    (root.path / "runs").mkdir()
    monkeypatch.setattr(data.tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(data.os, "fsync", lambda _: None)
    state, told = states(root)["data"]
    assert state == "WRONG"
    assert "runs cannot be written: Permission denied; give it to the user" in told


def test_as_json(root: DataRoot, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.delenv("REDIS_URL", raising=False)
    root.deployment("production").write_text("[]")
    ended = CliRunner().invoke(app, ["doctor", "--json", "--data", str(root.path), "--vlm", str(MODEL)])
    assert ended.exit_code == 1
    document = json.loads(ended.stdout)
    assert document["ok"] is False
    wrong = [finding for finding in document["findings"] if finding["state"] == "WRONG"]
    assert "deployment production" in {finding["what"] for finding in wrong}
    assert orjson.dumps(document)
