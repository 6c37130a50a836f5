"""The demo's data folder: what a run finds there, and what it begins without."""

from __future__ import annotations

from pathlib import Path

import orjson

from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset
from leverplus.dataset.invented_words import SIZES, generate
from leverplus.demo.config import DemoConfig
from leverplus.errors import Conflict
from leverplus.files import remove_folder, write_json

_MARK = "demo.json"
_ANEW = ("rl-data", "runs", "checkpoints", "deployments", "valkey", "logs", "results")


def claim_folder(config: DemoConfig) -> None:
    """Marks an empty folder as the demo's. Conflict for one that holds other work, since a run deletes what it finds."""
    if (config.data / _MARK).is_file():
        return
    held = sorted(path.name for path in config.data.iterdir()) if config.data.is_dir() else []
    if [name for name in held if name != "launcher.lock"]:
        raise Conflict(
            f"{config.data} holds {held[0]} and was not made by the demo, which begins by deleting earlier scores and "
            "checkpoints; name an empty folder with --data"
        )
    write_json(config.data / _MARK, {"purpose": "data of `leverplus demo`; scores and checkpoints are made anew by each run"})


def prepare_folder(config: DemoConfig) -> str:
    """Deletes scores, RL data, checkpoints and deployments of earlier runs; generates the dataset if it is not there.

    Embeddings stay. Returns what happened, in words. The caller owns the folder.
    """
    for name in _ANEW:
        remove_folder(config.data / name)
    for path in config.data.glob("store.sqlite*"):
        path.unlink()
    cut = config.cut
    folder = DataRoot(config.data).dataset(cut.dataset)
    kept = folder.is_dir()
    if kept and Dataset.open(folder).info.splits != SIZES[cut.items]:
        # Of a version whose demo had other sizes.
        for old in (folder, DataRoot(config.data).embeddings(cut.dataset)):
            remove_folder(old)
        kept = False
    if not kept:
        generate(folder, name=cut.dataset, seed=config.seed, **SIZES[cut.items])
    info = Dataset.open(folder).info
    counts = ", ".join(f"{count} {split}" for split, count in info.splits.items())
    return f"{cut.dataset}: {counts} questions{_kept_note(folder, config.seed) if kept else ''}"


def _kept_note(folder: Path, seed: int) -> str:
    """That the dataset was there, and whose seed counts where another was asked for."""
    made_with = orjson.loads((folder / "languages.json").read_bytes())["seed"]
    if made_with == seed:
        return " (kept)"
    return f" (kept: made with seed {made_with}, not {seed}; name another folder with --data for that)"
