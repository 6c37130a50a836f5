"""Before a run: everything it uses was made under one contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from leverplus.dataset import Dataset
from leverplus.embeddings import Embeddings
from leverplus.errors import InvalidInput
from leverplus.fingerprint import Fingerprint
from leverplus.ids import ItemId
from leverplus.pools import PoolPolicy, Pools
from leverplus.rl_data import RlData


def under_one_contract(
    rl_data: Sequence[RlData],
    rl_data_refs: Sequence[Mapping[str, str]],
    *,
    dataset: Dataset,
    embeddings: Embeddings,
    pool_policy: PoolPolicy,
) -> tuple[list[RlData], Fingerprint]:
    """The files as they are to be trained on, and the fingerprint that the checkpoint will carry.

    A file that states its pool contract must state the given one, and keeps its pools. One that states none (foreign files do
    not) gets the pools of `pool_policy`, because those are what will be served.
    FingerprintMismatch, naming each field and both values, where a file was made from another dataset, other embeddings or
    another pool policy than the ones given, or two files differ in any part. InvalidInput without files, InvalidEmbeddings
    where an item that a file names has no vector.
    """
    if not rl_data:
        raise InvalidInput("no RL data were given; upload or generate some first")
    if len(rl_data) != len(rl_data_refs):
        raise InvalidInput(f"{len(rl_data)} files of RL data, but {len(rl_data_refs)} references to them")
    names = [f"RL data {ref['id']}" for ref in rl_data_refs]
    pools = Pools(dataset, embeddings, pool_policy)
    given = Fingerprint(dataset=dataset.fingerprint(), pool=pools.fingerprint())
    first = rl_data[0].fingerprint
    for data, name in zip(rl_data, names, strict=True):
        given.require_same(data.fingerprint, subject=name, parts=("dataset",))
        if data.fingerprint.pool is not None:
            given.require_same(data.fingerprint, subject=name, parts=("pool",))
        first.require_same(data.fingerprint, subject=f"{name}, beside {names[0]},")
        # A part that only one of them states is a difference, whichever it is.
        data.fingerprint.require_same(first, subject=f"{names[0]}, beside {name},")
    files = list(rl_data) if first.pool is not None else [_with_pools(data, pools) for data in rl_data]
    for data in files:
        for record in data.records:
            embeddings.require([record.query_id, *record.candidate_pool_ids])
    return files, replace(first, pool=given.pool)


def _with_pools(data: RlData, pools: Pools) -> RlData:
    records = [
        replace(record, candidate_pool_ids=tuple(ItemId(int(item_id)) for item_id in pools.pool(record.query_id)))
        for record in data.records
    ]
    return replace(data, records=records)
