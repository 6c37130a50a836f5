"""What prompts begin with: where it ends, how much is kept, and that reusing it changes no answer."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest
import torch

from leverplus.dataset import Dataset
from leverplus.dataset.invented_words import generate
from leverplus.prompts import Shot
from vqa_scorer.engines import ScoringPrompt
from vqa_scorer.engines.prefixes import Prefix, PrefixCache, join
from vqa_scorer.engines.qwen2_5_vl import second_image
from vqa_scorer.engines.transformers import TransformersEngine

VLM = Path(__file__).parents[2] / "assets" / "in-context-vlm"


def prefix(length: int, *images: object) -> Prefix:
    values = torch.arange(2 * length * 3, dtype=torch.float32).reshape(2, length, 3)
    return Prefix(tuple(range(length)), images, [(values, -values)])


@pytest.mark.parametrize(("ids", "place"), [([1, 9, 9, 2], None), ([9, 9, 2, 9, 3], 3), ([1, 2], None), ([9, 1, 9, 1, 9], 2)])
def test_a_demonstration_ends_where_the_second_image_begins(ids: list[int], place: int | None) -> None:
    assert second_image(ids, 9) == place


def test_the_least_recently_used_prefix_goes_first() -> None:
    one = prefix(4)
    assert one.bytes == 2 * 2 * 4 * 3 * 4
    cache = PrefixCache(limit=one.bytes + prefix(3).bytes)
    two, three = prefix(3), prefix(2)
    for kept in (one, two):
        cache.put(kept)
    assert cache.get(one.key) is one
    cache.put(three)
    assert cache.get(two.key) is None
    assert (cache.get(one.key), cache.get(three.key)) == (one, three)
    cache.put(prefix(9))
    assert cache.get(prefix(9).key) is None
    assert len(cache) == 2


def test_prefixes_of_other_images_are_others() -> None:
    image, other = object(), object()
    cache = PrefixCache(limit=10**6)
    cache.put(prefix(2, image))
    assert cache.get(prefix(2, other).key) is None
    assert cache.get(prefix(2, image).key) is not None


def test_joined_prefixes_are_padded_on_the_left() -> None:
    joined, seen = join([prefix(1), prefix(3)], torch.device("cpu"))
    keys, values = joined[0]
    assert seen.tolist() == [[False, False, True], [True, True, True]]
    assert keys.shape == (2, 2, 3, 3)
    assert torch.equal(keys[0, :, 2:], prefix(1).cache[0][0])
    assert torch.equal(values[1], prefix(3).cache[0][1])
    assert not keys[0, :, :2].any()


def test_answers_do_not_depend_on_what_is_kept_or_stands_beside_them(tmp_path: Path) -> None:
    generate(tmp_path / "words", name="words", seed=3, train=40, val=1, test=20)
    dataset = Dataset.open(tmp_path / "words")

    def shot(item_id: int, *, solved: bool = True) -> Shot:
        item = dataset.item(item_id)
        return Shot(dataset.image_path(item_id), item.question, item.answer if solved else None)

    queries = dataset.split_ids("test")[:4]
    pointers = [(), (0,), *permutations((0, 1, 2), 2), (0, 1, 2, 3)]
    prompts = [ScoringPrompt(tuple(map(shot, pointer)), shot(query, solved=False)) for query in queries for pointer in pointers]
    engine = TransformersEngine(VLM, threads=1, batch_size=16)
    engine.load()
    together = engine.generate(prompts)
    assert engine.generate(prompts) == together
    alone = TransformersEngine(VLM, threads=1, batch_size=1, prefix_cache_bytes=0)
    alone.load()
    assert alone.generate(prompts[::-1])[::-1] == together
