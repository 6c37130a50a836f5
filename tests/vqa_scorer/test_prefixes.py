"""What prompts begin with: where it ends, how much is kept, and that reusing it changes no answer."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import torch

from leverplus.dataset import Dataset
from leverplus.dataset.invented_words import generate
from leverplus.prompts import Shot
from vqa_scorer.engines import ScoringPrompt
from vqa_scorer.engines.packed import Memory
from vqa_scorer.engines.prefixes import ImageShape, Layout, Part, Prefix, PrefixCache, runs, shared_cuts
from vqa_scorer.engines.qwen2_5_vl import encode
from vqa_scorer.engines.transformers import TransformersEngine

VLM = Path(__file__).parents[2] / "assets" / "in-context-vlm"


def image(identity: str, tokens: int = 1) -> ImageShape:
    return ImageShape(identity, tokens, 1)


def prefix(length: int, *images: ImageShape, parent: Prefix | None = None) -> Prefix:
    """Keys of its own rows are 0, 1, 2, … in two layers, values their negatives."""
    before = parent.length if parent is not None else 0
    rows = torch.arange(before, length, dtype=torch.float32)[:, None, None].expand(-1, 1, 3)
    cache = torch.stack([rows, -rows], dim=1).expand(2, -1, -1, -1, -1).clone()
    return Prefix((np.arange(length).tobytes(), images), length, parent, cache)


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
    cache.clear()
    assert (len(cache), cache.get(one.key)) == (0, None)


def test_prefixes_of_other_images_are_others() -> None:
    cache = PrefixCache(limit=10**6)
    cache.put(prefix(2, image("a")))
    assert cache.get(prefix(2, image("b")).key) is None
    assert cache.get(prefix(2, image("a")).key) is not None


def test_prompts_are_cut_where_what_they_share_ends() -> None:
    """Before the second image always, before a further one where another prompt is the same up to there."""
    a, b, c, q = (image(name, 2) for name in "abcq")
    none, one, two = encode([1, 9, 2], [q], 9), encode([1, 9, 2, 9, 3], [a, q], 9), encode([1, 9, 9, 9], [a, b, q], 9)
    other, third = encode([1, 9, 9, 9], [a, b, c], 9), encode([1, 9, 9, 9], [a, c, q], 9)
    assert none.image_starts == (1,)
    assert (one.image_starts, len(one)) == ((1, 4), 7)
    assert shared_cuts([none, one, two, third]) == [[], [4], [3], [3]]
    assert shared_cuts([two, other, third]) == [[3, 5], [3, 5], [3]]


def test_keys_are_packed_behind_what_they_go_on_from() -> None:
    start = prefix(2)
    longer = prefix(3, parent=start)
    prompt = encode([0, 1, 2, 3, 4], [], 9)
    parts = [Part(prompt, longer, 5), Part(prompt, start, 3), Part(prompt, longer, 4)]
    layout = Layout.of(parts)
    assert [one.own for one in layout.prefixes] == [2, 1]
    assert layout.rows == 2 + 1 + 2 + 1 + 1
    assert layout.order.tolist() == [0, 1, 2, 3, 4, 0, 1, 5, 0, 1, 2, 6]
    assert layout.lengths == [5, 3, 4]
    assert layout.places().tolist() == [[0, 1, 2, 3, 4], [0, 1, 5, 0, 0], [0, 1, 2, 6, 0]]
    assert [list(run) for run in runs(parts, 3)] == [parts[:2], parts[2:]]
    assert [list(run) for run in runs(parts, 1)] == [[part] for part in parts]
    assert list(runs([], 9)) == []
    assert layout.caches()[1, :, 0, 0, 0].tolist() == [0, 1, 2]


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
    alone = TransformersEngine(VLM, threads=1, batch_size=1, memory=Memory(images=0, images_on_host=0, prefixes=0))
    alone.load()
    assert alone.generate(prompts[::-1])[::-1] == together
