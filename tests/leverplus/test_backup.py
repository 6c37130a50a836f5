"""A data folder as one file, and back: all of it, or nothing."""

from __future__ import annotations

import io
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from leverplus.backup import write_backup
from leverplus.cli import app
from leverplus.data_root import DataRoot
from leverplus.errors import InvalidInput, NotFound, Unavailable
from leverplus.ids import ItemId
from leverplus.restore import InvalidBackup, read_backup
from leverplus.store import JobStore, ScoreStore, open_store

CONTENT = {
    "datasets/toy/dataset.json": b"{}",
    "datasets/toy/images/1.png": bytes(range(256)) * 20,
    "embeddings/toy/query.safetensors": b"\x00" * 3000,
    "rl-data/rl-1.ndjson": b'{"query_id": 1}\n',
    "runs/job-1/log.txt": b"a line\n",
    "checkpoints/ckpt-1/checkpoint.json": b"{}",
    "checkpoints/ckpt-1/index-a/manifest.json": b"{}",
    "deployments/production.json": b"{}",
    "openings/toy.ndjson": b"",
}
LEFT = ["logs/selector_api.log", "valkey/valkey.conf", "launcher.lock", "demo/store.sqlite", "runs/.job-2.1.0123abcd.tmp/x"]
LEFT += ["deployments/.lock", "rl-data/.upload-x/file", "checkpoints/.ckpt-2.0123abcd.trash/model"]


@pytest.fixture
def root(tmp_path: Path) -> DataRoot:
    root = DataRoot(tmp_path / "data")
    for name, content in {**CONTENT, **dict.fromkeys(LEFT, b"left out")}.items():
        path = root.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    engine = open_store(root.sqlite_url)
    JobStore(engine).create("train", {"rl_data": ["rl-1"]}, job_id="job-1")
    ScoreStore(engine).commit("d", "g", {(ItemId(1), (ItemId(2),)): "red"})
    engine.dispose()
    return root


def archive(root: DataRoot) -> bytes:
    stream = io.BytesIO()
    write_backup(root, stream, database=root.path / "store.sqlite")
    return stream.getvalue()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_restored_is_what_was_there(root: DataRoot, tmp_path: Path):
    made = archive(root)
    restored = read_backup(io.BytesIO(made), tmp_path / "new")
    assert (restored.files, restored.database) == (len(CONTENT) + 1, "sqlite")
    found = files(tmp_path / "new")
    assert found.pop("store.sqlite").startswith(b"SQLite format 3")
    assert found == CONTENT
    engine = open_store(DataRoot(tmp_path / "new").sqlite_url)
    assert JobStore(engine).get("job-1").status == "queued"
    assert ScoreStore(engine).committed("d", "g", [(ItemId(1), (ItemId(2),))]) == {(ItemId(1), (ItemId(2),)): "red"}
    engine.dispose()
    assert not list(root.path.glob(".backup*"))


def test_links_are_followed(root: DataRoot, tmp_path: Path):
    outside = tmp_path / "large disk"
    (root.path / "datasets" / "toy").rename(outside)
    (root.path / "datasets" / "toy").symlink_to(outside)
    (outside / "loop").symlink_to(outside)
    read_backup(io.BytesIO(archive(root)), tmp_path / "new")
    assert (tmp_path / "new" / "datasets" / "toy" / "images" / "1.png").read_bytes() == CONTENT["datasets/toy/images/1.png"]
    assert not (tmp_path / "new" / "datasets" / "toy").is_symlink()


def test_the_folder_is_as_it_was_when_its_database_was(root: DataRoot, tmp_path: Path):
    """What goes after the database was copied is in the archive all the same; a log may grow."""

    class Deleting(io.BytesIO):
        def write(self, content: bytes, /) -> int:  # type: ignore[override]
            if (folder := root.path / "checkpoints" / "ckpt-1").exists():
                for path in sorted(folder.rglob("*"), reverse=True):
                    path.rmdir() if path.is_dir() else path.unlink()
                folder.rmdir()
                (root.path / "rl-data" / "rl-1.ndjson").unlink()
            with (root.path / "runs" / "job-1" / "log.txt").open("ab") as log:
                log.write(b"more\n")
            return super().write(content)

    stream = Deleting()
    write_backup(root, stream, database=root.path / "store.sqlite")
    read_backup(io.BytesIO(stream.getvalue()), tmp_path / "new")
    found = files(tmp_path / "new")
    assert found["checkpoints/ckpt-1/checkpoint.json"] == b"{}"
    assert found["rl-data/rl-1.ndjson"] == CONTENT["rl-data/rl-1.ndjson"]
    assert found["runs/job-1/log.txt"].startswith(b"a line\n")


def test_the_database_is_one_state_while_others_write(root: DataRoot, tmp_path: Path):
    """Two rows are written in one transaction, always; a copy has both or neither."""
    path = root.path / "store.sqlite"
    ended = threading.Event()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE pairs (number INTEGER, side TEXT)")

    def write() -> None:
        with sqlite3.connect(path, timeout=30) as connection:
            for number in range(100_000):
                with connection:
                    connection.execute("INSERT INTO pairs VALUES (?, 'left')", (number,))
                    connection.execute("INSERT INTO pairs VALUES (?, 'right')", (number,))
                if ended.is_set():
                    return

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(5):
            target = tmp_path / f"new{number}"
            read_backup(io.BytesIO(archive(root)), target)
            with sqlite3.connect(target / "store.sqlite") as connection:
                assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                sides = dict(connection.execute("SELECT side, count(*) FROM pairs GROUP BY side").fetchall())
            assert sides.get("left") == sides.get("right")
    finally:
        ended.set()
        writer.join()


def test_without_a_folder_or_a_database(tmp_path: Path):
    with pytest.raises(NotFound, match="name one with --data"):
        write_backup(DataRoot(tmp_path / "none"), io.BytesIO(), database=None)
    (tmp_path / "data").mkdir()
    stream = io.BytesIO()
    assert write_backup(DataRoot(tmp_path / "data"), stream, database=None).database == "postgresql"
    stream.seek(0)
    assert read_backup(stream, tmp_path / "new").files == 0


def refused(made: bytes, target: Path) -> str:
    with pytest.raises(InvalidBackup) as refusal:
        read_backup(io.BytesIO(made), target)
    assert not target.exists() or not list(target.iterdir())
    return str(refusal.value)


def test_one_that_is_cut_short_anywhere_restores_nothing(root: DataRoot, tmp_path: Path):
    made = archive(root)
    end = made.rindex(b"}") + 1  # of the checksums; zeros follow
    for length in {*range(0, end, 257), end - 1}:
        refused(made[:length], tmp_path / "new")
    (tmp_path / "empty").mkdir()
    refused(made[: end // 2], tmp_path / "empty")
    assert (tmp_path / "empty").is_dir()


def test_one_that_is_altered_anywhere_restores_nothing_else(root: DataRoot, tmp_path: Path):
    """A flipped bit is refused, or stands where it changes no content: in padding, a time, a checksum of the tar's own."""
    made = archive(root)
    whole = files(tmp_path / "new") if read_backup(io.BytesIO(made), tmp_path / "new") else {}
    numbers = random.Random(0)
    refusals = 0
    for trial in range(300):
        altered = bytearray(made)
        altered[numbers.randrange(len(made))] ^= 1 << numbers.randrange(8)
        target = tmp_path / f"trial{trial}"
        try:
            read_backup(io.BytesIO(bytes(altered)), target)
        except InvalidBackup:
            refusals += 1
            assert not target.exists()
        else:
            assert files(target) == whole
    assert refusals > 100


Member = tuple[str, bytes, bytes]


def forged(root: DataRoot, *further: tarfile.TarInfo, names: bool = True) -> bytes:
    """A backup of ours with further members, which its checksums list."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(archive(root))) as old, tarfile.open(fileobj=stream, mode="w") as new:
        for member in old:
            content = old.extractfile(member)
            assert content is not None
            if member.name == "checksums.json":
                for one in further:
                    new.addfile(one, io.BytesIO(b"x" * one.size))
                listed = orjson.loads(content.read())
                empty = [0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]
                listed |= {one.name: empty for one in further} if names else {}
                raw = orjson.dumps(listed)
                member.size = len(raw)
                new.addfile(member, io.BytesIO(raw))
            else:
                new.addfile(member, content)
    return stream.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


@pytest.mark.parametrize(
    "further",
    [
        member("../outside"),
        member("runs/../../outside"),
        member("/tmp/outside"),
        member("runs//outside"),
        member("./runs/outside"),
        member("runs\\..\\outside"),
        member("secrets/outside"),
        member("runs"),
        member("store.sqlite-wal"),
        member("runs/link", tarfile.SYMTYPE, "/etc/passwd"),
        member("runs/link", tarfile.LNKTYPE, "../../etc/passwd"),
        member("runs/fifo", tarfile.FIFOTYPE),
        member("runs/device", tarfile.CHRTYPE),
        member("runs/folder", tarfile.DIRTYPE),
        member("runs/job-1/log.txt"),
        member("runs/job-1/log.txt/below"),
    ],
    ids=lambda one: f"{one.name} {one.type.decode()}",
)
def test_names_that_lead_elsewhere_are_refused(root: DataRoot, tmp_path: Path, further: tarfile.TarInfo):
    target = tmp_path / "deep" / "new"
    told = refused(forged(root, further), target)
    assert "nothing was restored" in told
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path / "deep" / "outside").exists()


def test_what_is_not_listed_or_missing_is_refused(root: DataRoot, tmp_path: Path):
    assert "not listed" in refused(forged(root, member("runs/job-1/more"), names=False), tmp_path / "new")
    listed = member("runs/job-1/more")
    without = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(forged(root, listed))) as old, tarfile.open(fileobj=without, mode="w") as new:
        for one in old:
            if one.name != listed.name:
                new.addfile(one, old.extractfile(one))
    assert "'runs/job-1/more' is missing" in refused(without.getvalue(), tmp_path / "new")
    assert "begins with" in refused(tar_of("other.txt"), tmp_path / "new")
    assert "no whole tar" in refused(os.urandom(5000), tmp_path / "new")


def tar_of(name: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as made:
        made.addfile(member(name))
    return stream.getvalue()


def test_a_folder_with_something_in_it_is_left_alone(root: DataRoot, tmp_path: Path):
    made = archive(root)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    (tmp_path / "file").write_text("")
    for target in ("mine", "file"):
        with pytest.raises(InvalidInput, match=r"not empty|not a folder"):
            read_backup(io.BytesIO(made), tmp_path / target)
    assert files(tmp_path / "mine") == {"thesis.txt": b"years"}


def test_what_a_killed_restore_left_is_no_hindrance(root: DataRoot, tmp_path: Path):
    (tmp_path / "new" / ".restore.999999999.0123abcd.tmp" / "runs").mkdir(parents=True)
    read_backup(io.BytesIO(archive(root)), tmp_path / "new")
    assert files(tmp_path / "new").keys() == {*CONTENT, "store.sqlite"}


def test_a_database_that_cannot_be_copied_is_one_line_and_leaves_nothing(root: DataRoot, tmp_path: Path):
    (root.path / "store.sqlite").write_bytes(b"no database" * 100)
    made = CliRunner().invoke(app, ["backup", str(tmp_path / "a.tar"), "--data", str(root.path)])
    assert made.exit_code == 2, made.output
    told = (
        f"error: {root.path / 'store.sqlite'} cannot be copied: file is not a database; is there room for a copy in {root.path}?"
    )
    assert made.stderr.startswith(told)
    assert not list(tmp_path.glob("*.tar"))
    assert not list(root.path.glob(".backup*"))


def test_a_backup_makes_no_folder_for_itself(root: DataRoot, tmp_path: Path):
    made = CliRunner().invoke(app, ["backup", str(tmp_path / "backsup" / "a.tar"), "--data", str(root.path)])
    assert made.exit_code == 2
    assert f"no folder '{tmp_path / 'backsup'}'; make it first" in made.stderr
    assert not (tmp_path / "backsup").exists()


def test_a_disk_without_room_is_named_before_anything_is_written(root: DataRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.tar"
    path.write_bytes(archive(root))
    size, usage = path.stat().st_size, type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(2**40, 2**40, size - 1 if place == tmp_path else 0))
    told = rf"deep/new: the backup takes {size / 2**20:,.1f} MiB, .* MiB are free there; free some space, or choose"
    with path.open("rb") as stream, pytest.raises(Unavailable, match=told):
        read_backup(stream, tmp_path / "deep" / "new")
    assert not (tmp_path / "deep").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40 - size, size))
    with path.open("rb") as stream:
        assert read_backup(stream, tmp_path / "deep" / "new").files == len(CONTENT) + 1


def test_a_write_that_fails_names_the_folder_and_leaves_nothing(root: DataRoot, tmp_path: Path):
    """As on a disk that fills up meanwhile, or whose room a pipe's reader cannot compare."""
    (tmp_path / "a.tar").write_bytes(archive(root))
    program = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); from leverplus.cli import app; app()"
    command = [sys.executable, "-c", program, "restore", "-", "--data"]
    for target in ("deep/new", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with (tmp_path / "a.tar").open("rb") as stream:
            ended = subprocess.run(
                [*command, str(tmp_path / target)], stdin=stream, capture_output=True, text=True, timeout=120, check=False
            )
        assert ended.returncode == 2
        assert ended.stderr == f"error: {tmp_path / target}: File too large; see to it and try again\n"
    assert not (tmp_path / "deep").exists()
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize("url", [None, "elsewhere", "postgresql://me:secret@host/db"])
def test_commands(root: DataRoot, tmp_path: Path, url: str | None, monkeypatch: pytest.MonkeyPatch):
    if url == "elsewhere":
        url = f"sqlite:///{tmp_path / 'elsewhere.sqlite'}"
        (root.path / "store.sqlite").rename(tmp_path / "elsewhere.sqlite")
    monkeypatch.setenv("DATABASE_URL", url or "")
    run: Callable[..., object] = CliRunner().invoke
    made = run(app, ["backup", str(tmp_path / "a.tar"), "--data", str(root.path)])
    assert made.exit_code == 0, made.output  # type: ignore[attr-defined]
    is_postgresql = url is not None and url.startswith("postgresql")
    assert ("pg_dump" in made.stderr) == is_postgresql  # type: ignore[attr-defined]
    again = run(app, ["backup", str(tmp_path / "a.tar"), "--data", str(root.path)])
    assert again.exit_code == 2  # type: ignore[attr-defined]
    restored = run(app, ["restore", str(tmp_path / "a.tar"), "--data", str(tmp_path / "new")])
    assert restored.exit_code == 0, restored.output  # type: ignore[attr-defined]
    assert (tmp_path / "new" / "store.sqlite").exists() != is_postgresql
    streamed = run(app, ["backup", "-", "--data", str(root.path)])
    (tmp_path / "b").mkdir()
    piped = run(app, ["restore", "-", "--data", str(tmp_path / "b")], input=streamed.stdout_bytes)  # type: ignore[attr-defined]
    assert piped.exit_code == 0, piped.output  # type: ignore[attr-defined]
    assert files(tmp_path / "b").keys() == files(tmp_path / "new").keys()
