"""Batches that fit: how prompts are divided, and what happens when a device's memory does not do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

from leverplus.errors import GenerationFailed, InvalidInput
from leverplus.prompts import Shot
from vqa_scorer.engines import ScoringPrompt
from vqa_scorer.engines.packed import Memory, even_run
from vqa_scorer.engines.pixels import Pixels
from vqa_scorer.engines.prefixes import EncodedPrompt, ImageShape
from vqa_scorer.engines.qwen2_5_vl import encode
from vqa_scorer.engines.transformers import TransformersEngine


def of_length(*lengths: int) -> list[EncodedPrompt]:
    return [encode([1] * length, (), 9) for length in lengths]


@pytest.mark.parametrize(
    ("lengths", "tokens", "count"),
    [((4, 4, 4), 12, 3), ((4, 4, 4, 4), 12, 2), ((9, 1), 4, 1), ((1, 9), 4, 1), ((5,), 4, 1), ((4,) * 9, 16, 3)],
)
def test_runs_are_even_and_fit(lengths: tuple[int, ...], tokens: int, count: int) -> None:
    assert len(even_run(of_length(*lengths), tokens)) == count


class Narrow:
    """Stands before a decoder's method: out of memory with more than so many prompts."""

    def __init__(self, decoder: object, prompts: int, method: str = "read") -> None:
        self.limit, self.asked = prompts, list[int]()
        self._read = getattr(decoder, method)

    def __call__(self, prompts: list[EncodedPrompt], *rest: object, **named: object) -> object:
        self.asked.append(len(prompts))
        if len(prompts) > self.limit:
            raise torch.OutOfMemoryError("no room")
        return self._read(prompts, *rest, **named)


def prompts_and_engine(random_vlm: Path, folder: Path) -> tuple[list[ScoringPrompt], TransformersEngine]:
    Image.new("RGB", (64, 64), "red").save(folder / "red.png")
    solved, asked = Shot(folder / "red.png", "colour?", "red"), Shot(folder / "red.png", "which?")
    engine = TransformersEngine(random_vlm, device="cpu", memory=Memory(images=10**6, images_on_host=0, prefixes=10**6))
    engine.load()
    return [ScoringPrompt((solved,) * count, asked) for count in (0, 1, 2, 3, 4)], engine


def test_batches_are_halved_until_they_fit(random_vlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, engine = prompts_and_engine(random_vlm, tmp_path)
    expected = engine.generate(prompts)
    decoder = engine._packed._decoder  # type: ignore[union-attr]
    narrow = Narrow(decoder, 2)
    monkeypatch.setattr(decoder, "read", narrow)
    assert engine.generate(prompts) == expected
    first = list(narrow.asked)
    assert first[0] == 5
    assert max(first[-2:]) <= 2
    assert engine.generate(prompts) == expected
    assert max(narrow.asked[len(first) :]) <= 2, "what did not fit is not tried again"


def test_images_go_through_the_tower_in_passes_that_fit(
    random_vlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, engine = prompts_and_engine(random_vlm, tmp_path)
    for name in "abcd":
        Image.new("RGB", (64, 64), "blue").save(tmp_path / f"{name}.png")
    prompts += [ScoringPrompt((), Shot(tmp_path / f"{name}.png", "which?")) for name in "abcd"]
    expected = engine.generate(prompts)
    _, narrow = prompts_and_engine(random_vlm, tmp_path)
    decoder = narrow._packed._decoder  # type: ignore[union-attr]
    encode_images, passes = decoder.encode_images, list[int]()

    def encode_two(patches: torch.Tensor, shapes: list[ImageShape]) -> list[torch.Tensor]:
        passes.append(len(shapes))
        if len(shapes) > 2:
            raise torch.OutOfMemoryError("no room")
        return encode_images(patches, shapes)

    monkeypatch.setattr(decoder, "encode_images", encode_two)
    assert narrow.generate(prompts) == expected
    assert passes == [5, 2, 2, 1]
    monkeypatch.setattr(decoder, "encode_images", Narrow(decoder, 0, method="encode_images"))
    Image.new("RGB", (64, 64), "green").save(tmp_path / "new.png")
    with pytest.raises(GenerationFailed, match="an image of 16 patches does not fit"):
        narrow.generate([ScoringPrompt((), Shot(tmp_path / "new.png", "which?"))])


def test_a_prompt_that_never_fits_is_told(random_vlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, engine = prompts_and_engine(random_vlm, tmp_path)
    decoder = engine._packed._decoder  # type: ignore[union-attr]
    monkeypatch.setattr(decoder, "read", Narrow(decoder, 0))
    with pytest.raises(GenerationFailed, match="does not fit the device's memory"):
        engine.generate(prompts)


def test_images_that_were_foreseen_are_decoded_once(random_vlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, engine = prompts_and_engine(random_vlm, tmp_path)
    packed = engine._packed
    assert packed is not None
    read, paths = packed._pixels.read, list[Path]()

    def recorded(path: Path) -> Pixels:
        paths.append(path)
        return read(path)

    monkeypatch.setattr(packed._pixels, "read", recorded)
    engine.look_ahead(prompts)
    assert paths == [], "on a processor nothing is read ahead"
    monkeypatch.setattr(packed, "_readers", ThreadPoolExecutor(2))
    absent = ScoringPrompt((), Shot(tmp_path / "absent.png", "which?"))
    engine.look_ahead([*prompts, absent])
    engine.look_ahead(prompts)
    expected = engine.generate(prompts)
    assert paths == [tmp_path / "red.png"]
    engine.look_ahead(prompts)
    assert engine.generate(prompts) == expected
    assert paths == [tmp_path / "red.png"], "features are kept"
    with pytest.raises(InvalidInput, match=r"absent\.png"):
        engine.generate([absent])


def test_no_more_is_read_ahead_than_may_be_held(random_vlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, engine = prompts_and_engine(random_vlm, tmp_path)
    packed = engine._packed
    assert packed is not None
    monkeypatch.setattr(packed, "_readers", ThreadPoolExecutor(1))
    monkeypatch.setattr("vqa_scorer.engines.packed.PIXELS_AHEAD", 2)
    for name in "abcde":
        Image.new("RGB", (64, 64), "blue").save(tmp_path / f"{name}.png")
    engine.look_ahead([ScoringPrompt((), Shot(tmp_path / f"{name}.png", "which?")) for name in "abcde"])
    assert len(packed._begun) == 2
