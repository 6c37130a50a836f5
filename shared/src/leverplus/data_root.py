"""Where things lie below LEVERPLUS_DATA."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from leverplus.errors import InvalidConfig

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
    path: Path

    def dataset(self, name: str) -> Path:
        return self.path / "datasets" / check_name(name, what="dataset")

    def embeddings(self, dataset: str) -> Path:
        """One set of embeddings a dataset: queries and candidates of one encoder."""
        return self.path / "embeddings" / check_name(dataset, what="dataset")

    def rl_data(self, rl_data_id: str) -> Path:
        return self.path / "rl-data" / f"{check_name(rl_data_id, what='rl_data_id')}.ndjson"

    def run(self, job_id: str) -> Path:
        return self.path / "runs" / check_name(job_id, what="job_id")

    def checkpoint(self, checkpoint_id: str) -> Path:
        return self.path / "checkpoints" / check_name(checkpoint_id, what="checkpoint")

    def prefilter(self, checkpoint_id: str, name: str) -> Path:
        """In the checkpoint's folder: it is of that checkpoint alone, and goes with it."""
        return self.checkpoint(checkpoint_id) / f"index-{check_name(name, what='prefilter')}"

    def deployment(self, alias: str) -> Path:
        return self.path / "deployments" / f"{check_name(alias, what='alias')}.json"

    def openings(self, dataset: str) -> Path:
        """Which final evaluations opened a dataset's test split."""
        return self.path / "openings" / f"{check_name(dataset, what='dataset')}.ndjson"

    @property
    def sqlite_url(self) -> str:
        # In an URL the one begins the query and the other an escape: unescaped, the file would lie outside the folder.
        path = str(self.path / "store.sqlite").replace("%", "%25").replace("?", "%3F")
        return f"sqlite:///{path}"
