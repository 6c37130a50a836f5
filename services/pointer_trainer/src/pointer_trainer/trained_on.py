"""What a checkpoint has seen of the queries that it is evaluated on."""

from __future__ import annotations

from collections.abc import Collection

from leverplus.checkpoints import CheckpointInfo
from leverplus.data_root import DataRoot
from leverplus.files import file_sha256
from leverplus.rl_data.sources import open_source


def count_trained_on(root: DataRoot, info: CheckpointInfo, query_ids: Collection[int]) -> int | None:
    """How many of the queries are in the RL data that made the checkpoint, its held-out part included: that chose the epoch.

    None where it cannot be known: the checkpoint names no RL data, or a file of it is gone or another one by now.
    InvalidRlData for a file that cannot be read.
    """
    asked = {str(query_id) for query_id in query_ids}
    seen: set[str] = set()
    if not info.rl_data:
        return None
    for stated in info.rl_data:
        path = root.rl_data(stated["id"])
        if not path.is_file() or file_sha256(path) != stated["sha256"]:
            return None
        seen.update(key for key, _ in open_source(path).entries() if key in asked)
    return len(seen)
