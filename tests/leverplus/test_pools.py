from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leverplus.dataset import Dataset, DatasetInfo, Item
from leverplus.embeddings import Block, EmbeddingManifest, Embeddings
from leverplus.errors import FingerprintMismatch, InvalidConfig, InvalidEmbeddings, NotFound
from leverplus.pools import SAMPLERS, PoolPolicy, Pools
from leverplus.random_order import RandomOrder, derive_seed, random_first, random_keys

BLOCKS = (Block("image", 0, 2), Block("question", 2, 4))


def make(folder, images, splits, vectors):
    items = [
        Item(number, split, None, image, f"q{number}", f"question {number}?", "yes")
        for number, (image, split) in enumerate(zip(images, splits, strict=True))
    ]
    dataset = Dataset(folder, DatasetInfo("d", "1", "CC0", "human", sha256="abc"), items)
    array = np.asarray(vectors, dtype=np.float32)
    manifest = EmbeddingManifest({"name": "test"}, "abc", BLOCKS, 4, len(items), "same", "encoders")
    return dataset, Embeddings(array, array, manifest)


@pytest.fixture
def by_hand(tmp_path):
    """Query 0 (val), candidates 1 to 5; item 1 shows the query's image."""
    angles = {1: (0, 0), 2: (10, 90), 3: (80, 0), 4: (20, 20), 5: (20, 20)}
    vectors = [(1.0, 0.0, 1.0, 0.0)]
    for first, second in angles.values():
        a, b = np.radians(first), np.radians(second)
        vectors.append((np.cos(a), np.sin(a), np.cos(b), np.sin(b)))
    return make(tmp_path, ["x", "x", "b", "c", "d", "e"], ["val"] + ["train"] * 5, vectors)


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        # Angles of the image block to the query's: 2 → 10°, 4 and 5 → 20°, 3 → 80°. The lower id first on a tie.
        ("similar_image", [2, 4, 5]),
        ("similar_text", [3, 4, 5]),
        # cos 20 + cos 20 = 1.88, cos 80 + cos 0 = 1.17, cos 10 + cos 90 = 0.98.
        ("similar_joint", [4, 5, 3]),
        ("all", [2, 3, 4, 5]),
    ],
)
def test_samplers_by_hand(by_hand, sampler, expected):
    assert Pools(*by_hand, PoolPolicy(sampler, k=3)).pool(0).tolist() == expected


def test_exclusions_by_hand(by_hand):
    both = Pools(*by_hand, PoolPolicy("all"))
    assert both.pool(1).tolist() == [2, 3, 4, 5]
    assert both.pool(2).tolist() == [1, 3, 4, 5]
    only_query = Pools(*by_hand, PoolPolicy("all", exclude=("query",)))
    assert only_query.pool(0).tolist() == [1, 2, 3, 4, 5]


def test_mixed_starts_with_the_nearest_and_goes_on_at_random(by_hand):
    pools = [Pools(*by_hand, PoolPolicy("mixed", k=3, seed=seed)).pool(0).tolist() for seed in range(30)]
    assert all(pool[:2] == [4, 5] for pool in pools)
    assert {pool[2] for pool in pools} == {2, 3}


def test_from_pointers_is_the_union_by_id(by_hand):
    pools = Pools(*by_hand, PoolPolicy("from_pointers", ids=(5, 2, 1, 2)))
    assert pools.pool(0).tolist() == [2, 5]
    assert pools.policy.ids == (1, 2, 5)
    assert pools.fingerprint()["policy"]["ids_count"] == 3
    with pytest.raises(InvalidConfig, match="item 0 is not in split 'train'"):
        Pools(*by_hand, PoolPolicy("from_pointers", ids=(0, 1)))


def test_random_pools_are_fixed_for_good(by_hand):
    """A pool is part of what was trained: this order must not change with a version of anything.

    Worked out with Python's own integers and hashlib.
    """
    dataset, _ = by_hand
    assert derive_seed("item", 0, 0) == 4778755372611684602
    pools = {query: Pools(dataset, None, PoolPolicy("random", k=3, seed=7)).pool(query).tolist() for query in (0, 1, 2)}
    assert pools == {0: [2, 5, 4], 1: [2, 4, 5], 2: [1, 5, 4]}


def test_an_unseen_query_is_seeded_by_its_content(by_hand):
    dataset, embeddings = by_hand
    pools = Pools(dataset, None, PoolPolicy("random", k=2, seed=1))
    first = pools.pool_of_unseen(image=b"png", question="what?")
    assert first.tolist() == pools.pool_of_unseen(image=b"png", question="what?").tolist()
    others = [pools.pool_of_unseen(image=b"png", question=f"what {n}?").tolist() for n in range(20)]
    assert any(other != first.tolist() for other in others)
    assert all(1 not in pools.pool_of_unseen(image=bytes([n]), question="?", image_id="x") for n in range(20))

    similar = Pools(dataset, embeddings, PoolPolicy("similar_image", k=3))
    vector = embeddings.query[0] * 5
    assert similar.pool_of_unseen(image=b"", question="", vector=vector).tolist() == [1, 2, 4]
    with pytest.raises(InvalidEmbeddings, match="needs the query's vector"):
        similar.pool_of_unseen(image=b"", question="")


@st.composite
def worlds(draw):
    count = draw(st.integers(4, 40))
    images = draw(st.lists(st.sampled_from("abcdefgh"), min_size=count, max_size=count))
    splits = ["train", "val", *draw(st.lists(st.sampled_from(["train", "train", "val"]), min_size=count - 2, max_size=count - 2))]
    # Few distinct values, so that ties and zero vectors come up.
    vectors = draw(st.lists(st.tuples(*[st.sampled_from([0.0, 1.0, -0.5])] * 4), min_size=count, max_size=count))
    sampler = draw(st.sampled_from([name for name in SAMPLERS if name != "from_pointers"]))
    exclude = draw(st.sampled_from([("query",), ("query", "same_image")]))
    return images, splits, vectors, PoolPolicy(sampler, draw(st.integers(1, 12)), draw(st.integers(0, 5)), exclude=exclude)


@given(worlds())
def test_what_holds_of_every_pool(tmp_path_factory, world):
    images, splits, vectors, policy = world
    dataset, embeddings = make(tmp_path_factory.getbasetemp(), images, splits, vectors)
    pools, again = Pools(dataset, embeddings, policy), Pools(dataset, embeddings, policy)
    for query in range(len(images)):
        eligible = [
            item.item_id
            for item in dataset.items
            if item.split == "train"
            and item.item_id != query
            and not ("same_image" in policy.exclude and item.image_id == images[query])
        ]
        if len(eligible) < (1 if policy.sampler == "all" else policy.k):
            with pytest.raises(InvalidConfig, match=f"query {query}"):
                pools.pool(query)
            continue
        pool = pools.pool(query)
        assert pool.dtype == np.int64
        assert set(pool.tolist()) <= set(eligible)
        assert len(set(pool.tolist())) == len(pool) == (len(eligible) if policy.sampler == "all" else policy.k)
        assert again.pool(query).tolist() == pool.tolist()


def test_random_covers_everything_evenly(tmp_path):
    dataset, _ = make(tmp_path, [str(n) for n in range(50)], ["train"] * 50, np.zeros((50, 4)))
    seen = np.zeros(50)
    for seed in range(400):
        seen[Pools(dataset, None, PoolPolicy("random", k=5, seed=seed)).pool(0)] += 1
    # 400 · 5 / 49 = 40.8 each; the standard deviation of a count is about 6.
    assert seen[0] == 0
    assert 15 < seen[1:].min() < seen[1:].max() < 67


@given(st.integers(0, 2**64 - 1), st.integers(1, 60), st.data())
def test_random_order(seed, count, data):
    ids = np.arange(count, dtype=np.int64)
    size = data.draw(st.integers(0, count))
    first = random_first(ids, size, seed)
    assert len(set(random_keys(ids, seed).tolist())) == count
    # A shorter draw is the start of a longer one, and the order of the ids does not matter.
    assert first.tolist() == random_first(ids[::-1].copy(), count, seed)[:size].tolist()


def test_policy_json_round_trip():
    policies = [PoolPolicy(), PoolPolicy("all"), PoolPolicy("similar_joint", 8), PoolPolicy("from_pointers", ids=(3, 1))]
    for policy in policies:
        assert PoolPolicy.from_json(policy.to_json()) == policy
    # What does not matter to a sampler is no difference.
    assert PoolPolicy("similar_text", 8, seed=1).to_json() == PoolPolicy("similar_text", 8, seed=2).to_json()
    assert PoolPolicy("all", k=3).to_json() == PoolPolicy("all").to_json()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"sampler": "nearest"}, "pool.sampler: 'nearest' is none of random"),
        ({"k": 0}, "pool.k: 0, must be at least 1"),
        ({"k": "64"}, "pool.k: '64' is no whole number"),
        ({"size": 64}, "unknown field 'size'"),
        ({"exclude": ["everything"]}, "everything"),
        ({"exclude": []}, "'query' is missing"),
        ({"exclude": "query"}, "is no list"),
        ({"ids": [1]}, "ids: belong to sampler 'from_pointers' only, and the sampler is 'random'"),
        ({"sampler": "from_pointers"}, "ids: missing: sampler 'from_pointers' is a stated list"),
        ({"sampler": "from_pointers", "ids": []}, "no pointer names"),
    ],
)
def test_refused_policies(value, reason):
    with pytest.raises(InvalidConfig, match=reason):
        PoolPolicy.from_json(value)


def test_refused_pools(by_hand):
    dataset, embeddings = by_hand
    with pytest.raises(InvalidConfig, match="5, but query 0 has 4 candidates in split 'train' after exclusions"):
        Pools(dataset, None, PoolPolicy("random", k=5)).pool(0)
    with pytest.raises(InvalidConfig, match="needs embeddings; run `leverplus embed`"):
        Pools(dataset, None, PoolPolicy("similar_joint", k=2))
    with pytest.raises(NotFound, match="split"):
        Pools(dataset, None, PoolPolicy("random", k=2, candidate_split="test"))
    with pytest.raises(NotFound, match="item"):
        Pools(dataset, None, PoolPolicy("random", k=2)).pool(6)
    foreign = Embeddings(embeddings.query, embeddings.query, replace(embeddings.manifest, dataset_sha256="def"))
    with pytest.raises(FingerprintMismatch):
        Pools(dataset, foreign, PoolPolicy("similar_joint", k=2))
    joint = Embeddings(embeddings.query, embeddings.query, replace(embeddings.manifest, blocks=(Block("joint", 0, 4),)))
    with pytest.raises(InvalidConfig, match="no block 'image', only joint"):
        Pools(dataset, joint, PoolPolicy("similar_image", k=2))


def test_a_query_without_a_vector_is_refused(by_hand):
    dataset, embeddings = by_hand
    query = embeddings.query.copy()
    query[0] = np.nan
    partial = Embeddings(query, query, replace(embeddings.manifest, splits=("train",)))
    pools = Pools(dataset, partial, PoolPolicy("similar_joint", k=2))
    assert len(pools.pool(2)) == 2
    with pytest.raises(InvalidEmbeddings, match="item 0 has no vector"):
        pools.pool(0)


def test_fingerprint_names_policy_and_embeddings(by_hand):
    dataset, embeddings = by_hand
    part = Pools(dataset, embeddings, PoolPolicy("random", k=2)).fingerprint()
    assert part["policy"] == {
        "sampler": "random", "candidate_split": "train", "exclude": ["query", "same_image"], "k": 2, "seed": 0,
    }  # fmt: skip
    assert part["embeddings"] == embeddings.fingerprint()
    assert Pools(dataset, None, PoolPolicy("random", k=2)).fingerprint()["embeddings"] is None


@pytest.mark.parametrize(("count", "size"), [(64, 9009), (1, 3), (3, 3), (200, 250), (64, 129), (0, 5), (64, 20_000)])
def test_the_first_of_a_random_order_are_those_with_the_smallest_keys(count: int, size: int) -> None:
    ids = np.arange(1000, 1000 + size)
    for seed in (0, 1, 2**64 - 1, 12345678901234567):
        expected = ids[np.argsort(random_keys(ids, seed))]
        assert random_first(ids, count, seed).tolist() == expected[:count].tolist()
        odd = expected[expected % 2 == 1]
        drawn = RandomOrder(ids).first(count, seed, lambda rows: ids[rows] % 2 == 0)
        assert drawn.tolist() == odd[:count].tolist()
