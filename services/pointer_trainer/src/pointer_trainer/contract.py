"""Before a run: everything it uses was made under one contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from leverplus.dataset import Dataset
from leverplus.embeddings import Embeddings
from leverplus.errors import InvalidInput
from leverplus.fingerprint import Fingerprint
from leverplus.pools import PoolPolicy, Pools
from leverplus.rl_data import RlData


def require_one_contract(
    rl_data: Sequence[RlData],
    rl_data_refs: Sequence[Mapping[str, str]],
    *,
    dataset: Dataset,
    embeddings: Embeddings,
    pool_policy: PoolPolicy,
) -> Fingerprint:
    """The fingerprint that all files share, which is what the checkpoint will carry.

    FingerprintMismatch, naming each field and both values, where a file was made from another dataset, other embeddings or
    another pool policy than the ones given, or two files differ in any part. InvalidInput without files, InvalidEmbeddings
    where an item that a file names has no vector.
    """
    if not rl_data:
        raise InvalidInput("no RL data were given; upload or generate some first")
    if len(rl_data) != len(rl_data_refs):
        raise InvalidInput(f"{len(rl_data)} files of RL data, but {len(rl_data_refs)} references to them")
    names = [f"RL data {ref['id']}" for ref in rl_data_refs]
    given = Fingerprint(dataset=dataset.fingerprint(), pool=Pools(dataset, embeddings, pool_policy).fingerprint())
    for data, name in zip(rl_data, names, strict=True):
        given.require_same(data.fingerprint, subject=name, parts=("dataset", "pool"))
        rl_data[0].fingerprint.require_same(data.fingerprint, subject=f"{name}, beside {names[0]},")
        # A part that only one of them states is a difference, whichever it is.
        data.fingerprint.require_same(rl_data[0].fingerprint, subject=f"{names[0]}, beside {name},")
        for record in data.records:
            embeddings.require([record.query_id, *record.candidate_pool_ids])
    return rl_data[0].fingerprint
