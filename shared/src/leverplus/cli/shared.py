"""Commands on what hosts share: publish, fetch, list. Services do the first two by themselves, for what jobs make and need."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leverplus.cli.options import DEFAULT_DATA, Data

if TYPE_CHECKING:
    from leverplus.shared_files import SharedFiles

app = typer.Typer(help="Files that several hosts share through a store (LEVERPLUS_SHARED).", no_args_is_help=True)

Url = Annotated[str, typer.Option("--shared", envvar="LEVERPLUS_SHARED", help="s3://bucket/prefix, gs://bucket/prefix.")]
Names = Annotated[
    list[str], typer.Argument(metavar="NAME...", help="As below the data folder: datasets/okvqa, rl-data/rl-1.ndjson.")
]


@app.command()
def publish(names: Names, shared: Url, data: Data = DEFAULT_DATA) -> None:
    """Share datasets, embeddings and what else is here; they are never changed afterwards."""
    from leverplus.errors import NotFound

    store = _store(shared, data)
    paths = [_path(store, name) for name in names]
    for name, path in zip(names, paths, strict=True):
        if not path.exists():
            raise NotFound(what="artefact", name=name, hint=f"{store.root} has no such folder or file")
    for name, path in zip(names, paths, strict=True):
        store.publish(path)
        print(f"{name}: shared")


@app.command()
def fetch(names: Names, shared: Url, data: Data = DEFAULT_DATA) -> None:
    """Bring what others shared, ahead of its use; what is here stays as it is."""
    from leverplus.errors import NotFound

    store = _store(shared, data)
    for name in names:
        if not store.fetch(_path(store, name)):
            raise NotFound(
                what="artefact", name=name, hint=f"{shared} has none; `leverplus shared list {name.partition('/')[0]}`"
            )
        print(f"{name}: here")


@app.command("list")
def list_command(
    folder: Annotated[str, typer.Argument(help="datasets, embeddings, rl-data, checkpoints, deployments.")],
    shared: Url,
    data: Data = DEFAULT_DATA,
) -> None:
    """What is shared below a folder."""
    store = _store(shared, data)
    for name in store.names(_path(store, folder)):
        print(f"{folder}/{name}")


def _store(url: str, data: Path) -> SharedFiles:
    from leverplus.data_root import DataRoot

    found = DataRoot.at(data, url).shared
    assert found is not None, "an URL was given"
    return found


def _path(store: SharedFiles, name: str) -> Path:
    from leverplus.errors import InvalidConfig

    path = (store.root / name).resolve()
    if path == store.root or not path.is_relative_to(store.root):
        raise InvalidConfig(field="NAME", reason=f"{name!r} is nothing below the data folder")
    return path
