"""Where things lie below LEVERPLUS_DATA, and whence they come where they are shared with other hosts."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path

from leverplus.errors import InvalidConfig, InvalidSharedFile, Unavailable
from leverplus.files import atomic_file
from leverplus.shared_files import SharedFiles
from leverplus.shared_store import check_shared_url

logger = logging.getLogger(__name__)

KINDS = ("datasets", "embeddings", "rl-data", "runs", "checkpoints", "deployments", "openings")
"""The folders of a data root."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def is_name(name: str) -> bool:
    """Whether `check_name` takes it."""
    return _NAME.fullmatch(name) is not None


def check_name(name: str, *, what: str) -> str:
    """`name` if it can be a folder name here, else InvalidConfig: this is what keeps paths inside the data root."""
    if not is_name(name):
        raise InvalidConfig(field=what, reason=f"{name!r} is no valid name: letters, digits, '.', '_' and '-', at most 128")
    return name


@dataclass(frozen=True)
class DataRoot:
    """A host's own folder. With `shared`, what is asked for and not here is fetched first, if another host has shared it: the
    methods that name an artefact then raise what `SharedFiles.fetch` raises."""

    path: Path
    shared: SharedFiles | None = None

    @classmethod
    def at(cls, path: Path, shared_url: str | None) -> DataRoot:
        """The folder, sharing through a store where there is one. InvalidConfig for what is no URL."""
        path = path.resolve()
        return cls(path, None if shared_url is None else SharedFiles(check_shared_url(shared_url), path))

    def patient(self, patience_s: float) -> DataRoot:
        """The same, whose every call waits so long for a store that is away."""
        return self if self.shared is None else replace(self, shared=replace(self.shared, patience_s=patience_s))

    def dataset(self, name: str) -> Path:
        return self._here(self.path / "datasets" / check_name(name, what="dataset"))

    def embeddings(self, dataset: str) -> Path:
        """One set of embeddings a dataset: queries and candidates of one encoder."""
        return self._here(self.path / "embeddings" / check_name(dataset, what="dataset"))

    def rl_data(self, rl_data_id: str) -> Path:
        return self._here(self.path / "rl-data" / f"{check_name(rl_data_id, what='rl_data_id')}.ndjson")

    def run(self, job_id: str) -> Path:
        """A run directory; what another host left in it comes with `newest`."""
        return self.path / "runs" / check_name(job_id, what="job_id")

    def checkpoint(self, checkpoint_id: str) -> Path:
        return self._here(self.path / "checkpoints" / check_name(checkpoint_id, what="checkpoint"))

    def prefilter(self, checkpoint_id: str, name: str) -> Path:
        """In the checkpoint's folder: it is of that checkpoint alone, and goes with it."""
        return self._here(self.checkpoint(checkpoint_id) / f"index-{check_name(name, what='prefilter')}")

    def deployment(self, alias: str) -> Path:
        return self.path / "deployments" / f"{check_name(alias, what='alias')}.json"

    def openings(self, dataset: str) -> Path:
        """Which final evaluations opened a dataset's test split."""
        return self.path / "openings" / f"{check_name(dataset, what='dataset')}.ndjson"

    def shard(self, job_id: str, name: str) -> Path:
        """A part of a generation's RL data, in its run directory until all of them are put together."""
        return self._here(self.shards(job_id) / name)

    def shards(self, job_id: str) -> Path:
        return self.run(job_id) / "shards"

    def publish(self, path: Path) -> None:
        """Shares an artefact that is never changed; nothing where nothing is shared. Raises as `SharedFiles.publish` does."""
        if self.shared is not None:
            self.shared.publish(path)

    def unpublish(self, path: Path) -> None:
        """What is deleted here is to go everywhere: other hosts keep what they have of it, and no further one gets it."""
        if self.shared is not None:
            self.shared.delete(path)

    def newest(self, path: Path) -> int:
        """Brings the newest of what is replaced now and then; its version, which `replace` wants. 0 where nothing is shared."""
        return 0 if self.shared is None else self.shared.refresh(path)

    def replace(self, path: Path, content: bytes, *, version: int) -> None:
        """Writes a file anew, for all hosts before this one. Conflict where another host replaced `version` meanwhile."""
        if self.shared is not None:
            self.shared.replace(path, content, version=version)
        with atomic_file(path) as stream:
            stream.write(content)

    def bring_all(self, folder: str) -> None:
        """Brings all artefacts of a folder (`checkpoints`) that others shared, before it is listed. What is damaged there stays
        there, and while the store is away what is here must do; the log tells of both."""
        if self.shared is None:
            return
        try:
            for name in self.shared.names(self.path / folder):
                try:
                    self._here(self.path / folder / name)
                except InvalidSharedFile as exc:
                    logger.warning("not listed: %s", exc)
        except Unavailable as exc:
            logger.warning("%s is listed as it is here: %s", folder, exc)

    def _here(self, path: Path) -> Path:
        if self.shared is not None and not path.exists():
            self.shared.fetch(path)
        return path

    @property
    def sqlite_url(self) -> str:
        # In an URL the one begins the query and the other an escape: unescaped, the file would lie outside the folder.
        path = str(self.path / "store.sqlite").replace("%", "%25").replace("?", "%3F")
        return f"sqlite:///{path}"
