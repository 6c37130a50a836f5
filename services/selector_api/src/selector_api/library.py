"""What is loaded: datasets, checkpoints, and the aliases that point at them.

An alias's file is looked at on every request and read again when it has changed; what was served stays in place while
its successor cannot be loaded, or while its own files are damaged.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from leverplus.checkpoints import INFO_FILE, MODEL_FILE, CheckpointInfo, load_checkpoint, require_unchanged
from leverplus.data_root import DataRoot, is_name
from leverplus.dataset import Dataset
from leverplus.deployments import read_deployment
from leverplus.embeddings import Embeddings
from leverplus.errors import InvalidInput, LeverPlusError, NotFound, Unavailable
from leverplus.prefilter.manifest import MANIFEST_FILE
from selector_api.health import HealthChecks
from selector_api.serving import LoadedPrefilter, Served

logger = logging.getLogger("selector_api")

Value = TypeVar("Value")
Stamp = tuple[int, int, int]

_CHECKPOINTS_KEPT = 8
_DATASETS_KEPT = 8
_PREFILTERS_KEPT = 4
_RETRY_EVERY_S = 5


@dataclass(frozen=True)
class _Alias:
    """What an alias stands for. `fault`: why the file as it is now is not what is served; requests try again from `due` on."""

    path: str
    stamp: Stamp
    served: Served | None
    fault: LeverPlusError | None
    due: float

    def settled(self) -> bool:
        """Whether a request has nothing to try."""
        return self.fault is None or monotonic() < self.due


class Library:
    """Loaded checkpoints, datasets and aliases. Safe from several threads; one of them loads at a time."""

    def __init__(self, root: DataRoot, health: HealthChecks) -> None:
        self._root = root
        self._health = health
        self._lock = threading.Lock()
        self._aliases: dict[str, _Alias] = {}
        self._checkpoints: OrderedDict[str, Served] = OrderedDict()
        self._files: WeakKeyDictionary[Served, _LoadedFiles] = WeakKeyDictionary()
        self._prefilters: OrderedDict[tuple[Served, str], tuple[Stamp | None, LoadedPrefilter]] = OrderedDict()
        self._datasets: _Latest[Dataset] = _Latest(lambda name: Dataset.open(root.dataset(name)))
        self._embeddings: _Latest[Embeddings] = _Latest(lambda name: Embeddings.open(root.embeddings(name)))

    def current(self, alias: str) -> Served | None:
        """What `alias` serves, or None when `load_alias` has work to do; reads nothing but the file's time."""
        state = self._aliases.get(alias)
        if state is None or state.stamp != _stamp(state.path) or not state.settled():
            return None
        return state.served

    def load_alias(self, alias: str) -> Served:
        """What `alias` serves, loaded if needed: the predecessor where the deployment's checkpoint cannot be.

        One that could not be loaded is tried again every few seconds, by who comes then. NotFound without a deployment. Where
        nothing was served before: Unavailable for files that are damaged or absent, which who asks can do nothing about, and
        what else is in the way as it is (FingerprintMismatch).
        """
        with self._lock:
            served, fault = self._follow(alias, at_once=False)
        if served is None:
            assert fault is not None
            if isinstance(fault, InvalidInput | NotFound) and self._root.deployment(alias).is_file():
                raise nothing_served(alias, fault)
            # Raised again and again, it would grow by the frames of each time.
            raise fault.with_traceback(None)
        return served

    def aliases(self) -> list[str]:
        """Those that have a deployment, or are in memory."""
        files = (self._root.path / "deployments").glob("*.json")
        return sorted({path.stem for path in files if is_name(path.stem)} | set(self._aliases))

    def served(self) -> dict[str, Served]:
        """What each alias that is in memory serves."""
        return {alias: state.served for alias, state in sorted(self._aliases.copy().items()) if state.served is not None}

    def checkpoint(self, checkpoint_id: str) -> Served | None:
        """A checkpoint that is in memory."""
        return self._checkpoints.get(checkpoint_id)

    def load_checkpoint(self, checkpoint_id: str) -> Served:
        """A checkpoint, loaded if needed. NotFound, InvalidCheckpoint, FingerprintMismatch, or what is wrong with its data."""
        with self._lock:
            return self._loaded(checkpoint_id)

    def prefilter(self, served: Served, name: str) -> LoadedPrefilter | None:
        """One that is in memory and unchanged on disk."""
        found = self._prefilters.get((served, name))
        return found[1] if found is not None and found[0] == _stamp(self._prefilter_file(served, name)) else None

    def load_prefilter(self, served: Served, name: str) -> LoadedPrefilter:
        """A prefilter of what is served, loaded if needed; raises as `Served.load_prefilter` does."""
        with self._lock:
            found = self.prefilter(served, name)
            if found is None:
                stamp = _stamp(self._prefilter_file(served, name))
                found = served.load_prefilter(self._root, name)
                self._prefilters[served, name] = (stamp, found)
            self._prefilters.move_to_end((served, name))
            while len(self._prefilters) > _PREFILTERS_KEPT:
                self._prefilters.popitem(last=False)
            return found

    def dataset(self, name: str) -> Dataset | None:
        """A dataset that is in memory and unchanged on disk."""
        return self._datasets.current(name, self._dataset_file(name))

    def load_dataset(self, name: str) -> Dataset:
        with self._lock:
            return self._datasets.get(name, self._dataset_file(name))

    def follow(self, alias: str) -> tuple[Served | None, LeverPlusError | None]:
        """What is served, and what is wrong: why the deployment as it is now is not served, or what became of the files that
        it was loaded from. One that could not be loaded is tried again at once."""
        with self._lock:
            served, fault = self._follow(alias, at_once=True)
            if served is not None and fault is None:
                fault = self._files[served].fault(served.info)
            return served, fault

    def _follow(self, alias: str, *, at_once: bool) -> tuple[Served | None, LeverPlusError | None]:
        path = str(self._root.deployment(alias))
        stamp = _stamp(path)
        state = self._aliases.get(alias)
        if state is not None and state.stamp == stamp and (state.fault is None or (not at_once and state.settled())):
            return state.served, state.fault
        if stamp is None:
            self._aliases.pop(alias, None)
        before = state.served if state is not None and stamp is not None else None
        try:
            deployment = read_deployment(self._root, alias)
            served, fault = self._loaded(deployment.checkpoint_id), None
            self._health.begin(served)
            logger.info("alias %s serves %s", alias, deployment.checkpoint_id)
        except LeverPlusError as exc:
            served, fault = before, exc
            logger.warning("alias %s cannot be served: %s", alias, exc)
        if stamp is not None:
            self._aliases[alias] = _Alias(path, stamp, served, fault, monotonic() + _RETRY_EVERY_S)
        return served, fault

    def _loaded(self, checkpoint_id: str) -> Served:
        served = self._checkpoints.get(checkpoint_id)
        if served is None:
            served = self._load(checkpoint_id)
            self._checkpoints[checkpoint_id] = served
        self._checkpoints.move_to_end(checkpoint_id)
        while len(self._checkpoints) > _CHECKPOINTS_KEPT:
            self._checkpoints.popitem(last=False)
        return served

    def _load(self, checkpoint_id: str) -> Served:
        folder = self._root.checkpoint(checkpoint_id)
        files = _LoadedFiles(folder)
        tensors, info = load_checkpoint(folder)
        dataset = self._datasets.get(info.dataset, self._dataset_file(info.dataset))
        embeddings = self._embeddings.get(info.dataset, self._root.embeddings(info.dataset) / "manifest.json")
        served = Served(tensors, info, dataset, embeddings)
        self._files[served] = files
        # A dataset is hundreds of thousands of objects that stay. Each full collection would look at all of them, and every
        # request that arrives meanwhile would wait.
        gc.collect()
        gc.freeze()
        return served

    def _prefilter_file(self, served: Served, name: str) -> Path:
        return self._root.prefilter(served.info.checkpoint_id, name) / MANIFEST_FILE

    def _dataset_file(self, name: str) -> Path:
        return self._root.dataset(name) / "dataset.json"


def nothing_served(alias: str, fault: LeverPlusError) -> Unavailable:
    """What who asks for `alias` is told while nothing is served under it."""
    hint = f"nothing is served under it, and it is tried again every {_RETRY_EVERY_S} s"
    return Unavailable(what=f"deployment {alias!r}", reason=str(fault), hint=hint, retry_after_s=_RETRY_EVERY_S)


class _LoadedFiles:
    """The files that a checkpoint is loaded from, as they are at that moment. They are read again only when size or time of one
    has changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stamps = self._now()
        self._fault: LeverPlusError | None = None

    def fault(self, info: CheckpointInfo) -> LeverPlusError | None:
        """What is wrong with them, if they are no longer what `info` and its tensors were loaded from."""
        stamps = self._now()
        if stamps != self._stamps:
            before = self._fault
            try:
                require_unchanged(self._folder, info)
                self._fault = None
                if before is not None:
                    logger.info("the files of checkpoint %s are whole again", info.checkpoint_id)
            except LeverPlusError as exc:
                self._fault = LeverPlusError(f"served from memory: {exc}")
                logger.warning("checkpoint %s is %s", info.checkpoint_id, self._fault)
            self._stamps = stamps
        return self._fault

    def _now(self) -> tuple[Stamp | None, ...]:
        return tuple(_stamp(self._folder / name) for name in (INFO_FILE, MODEL_FILE))


class _Latest(Generic[Value]):
    """Values by name, each read again when the file that stands for it has changed; the least recently used one goes first."""

    def __init__(self, read: Callable[[str], Value]) -> None:
        self._read = read
        self._kept: OrderedDict[str, tuple[Stamp | None, Value]] = OrderedDict()

    def current(self, name: str, path: Path) -> Value | None:
        found = self._kept.get(name)
        return found[1] if found is not None and found[0] == _stamp(path) else None

    def get(self, name: str, path: Path) -> Value:
        value = self.current(name, path)
        if value is None:
            stamp = _stamp(path)
            value = self._read(name)
            self._kept[name] = (stamp, value)
        self._kept.move_to_end(name)
        while len(self._kept) > _DATASETS_KEPT:
            self._kept.popitem(last=False)
        return value


def _stamp(path: Path | str) -> Stamp | None:
    """Changes when the file does; None when there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116 -- half the time of Path.stat, on every request
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
