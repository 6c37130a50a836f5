"""Follows the deployments that hosts share: what an alias serves is brought here whole before its file changes here."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from leverplus.checkpoints import read_info
from leverplus.data_root import DataRoot
from leverplus.deployments import parse_deployment
from leverplus.errors import LeverPlusError
from leverplus.files import atomic_file
from leverplus.shared_files import SharedFiles

logger = logging.getLogger("selector_api")

FOLLOW_EVERY_S = 3.0


class Follower:
    """A thread that looks at the store every few seconds. While it is away, or something there is broken, what is here goes on
    being served, and the log says so once."""

    def __init__(self, root: DataRoot, shared: SharedFiles, *, every_s: float = FOLLOW_EVERY_S) -> None:
        """`root`: the host's own folder, which is served from."""
        self._root = root
        self._shared = shared
        self._every_s = every_s
        self._ended = threading.Event()
        self._faults: dict[str, str] = {}
        self._thread = threading.Thread(target=self._run, name="deployments", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """A transfer under way is not waited for: what is not whole has no name here."""
        self._ended.set()

    def look(self) -> None:
        """One round, over all aliases."""
        folder = self._root.path / "deployments"
        try:
            names = self._shared.names(folder)
        except LeverPlusError as exc:
            self._tell("deployments", exc)
            return
        self._tell("deployments", None)
        for name in names:
            if name.endswith(".json"):
                try:
                    self._follow(folder / name)
                except (LeverPlusError, OSError) as exc:
                    self._tell(name, exc)
                else:
                    self._tell(name, None)

    def _follow(self, path: Path) -> None:
        content, version = self._shared.read(path)
        if not version or (path.is_file() and path.read_bytes() == content):
            return
        deployment = parse_deployment(content, path, path.stem)
        checkpoint = self._root.checkpoint(deployment.checkpoint_id)
        self._shared.fetch(checkpoint)
        for index in self._shared.names(checkpoint):
            self._shared.fetch(checkpoint / index)
        dataset = read_info(checkpoint).dataset
        self._shared.fetch(self._root.dataset(dataset))
        self._shared.fetch(self._root.embeddings(dataset))
        with atomic_file(path) as stream:
            stream.write(content)
        logger.info("alias %s is now %s, as in %s", path.stem, deployment.checkpoint_id, self._shared.url)

    def _run(self) -> None:
        while not self._ended.is_set():
            self.look()
            self._ended.wait(self._every_s)

    def _tell(self, what: str, fault: Exception | None) -> None:
        before = self._faults.pop(what, None)
        if fault is not None:
            self._faults[what] = str(fault)
            if before is None:
                logger.warning("%s: what is here goes on being served: %s", what, fault)
        elif before is not None:
            logger.info("%s can be followed again", what)
