"""How the pools of RL data were made, and so are those of what is trained or judged on them."""

from __future__ import annotations

from collections.abc import Sequence

from leverplus.dataset import Dataset
from leverplus.errors import InvalidRlData
from leverplus.pools import PoolPolicy
from leverplus.rl_data import RlData


def pool_policy(data: Sequence[RlData], dataset: Dataset) -> PoolPolicy:
    """The policy that `_meta` states; else one shared pool of all ids that are in a pool of the files.

    The latter is what a file of the reference gets: it does not say how its pools came about. Such a file may show a query's
    own image in a demonstration, so its pools leave out the query alone. InvalidRlData where those ids are of several splits.
    """
    stated = data[0].meta.get("pool_policy")
    if stated is not None:
        return PoolPolicy.from_json(stated)
    ids = sorted({item_id for each in data for record in each.records for item_id in record.candidate_pool_ids})
    splits = sorted({dataset.item(item_id).split for item_id in ids})
    if len(splits) != 1:
        reason = f"ids of splits {splits}; demonstrations must come from one split"
        raise InvalidRlData(file="RL data", query=None, field="candidate_pool_ids", reason=reason)
    return PoolPolicy(sampler="from_pointers", candidate_split=splits[0], exclude=("query",), ids=tuple(ids))
