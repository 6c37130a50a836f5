"""Pixels as transformers' own processor gives them, and features kept within bounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from leverplus.errors import InvalidInput
from vqa_scorer.engines.features import FeatureCache, ImageFeatures
from vqa_scorer.engines.images import FileVersion, file_version
from vqa_scorer.engines.pixels import PixelReader
from vqa_scorer.engines.prefixes import ImageShape


def photograph(path: Path, width: int, height: int) -> Path:
    values = np.random.default_rng(width).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize(("width", "height"), [(64, 64), (90, 60), (640, 480), (56, 300), (20, 20)])
def test_patches_are_those_of_transformers(tmp_path: Path, width: int, height: int) -> None:
    stock = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 300})
    path = photograph(tmp_path / "photograph.png", width, height)
    reader = PixelReader(stock, torch.device("cpu"))
    pixels = reader.read(path)
    expected = stock(images=[Image.open(path)], return_tensors="pt")
    assert [1, pixels.rows * 2, pixels.columns * 2] == expected["image_grid_thw"][0].tolist()
    assert reader.patch_count(pixels) == len(expected["pixel_values"])
    assert torch.allclose(reader.patches([pixels]), expected["pixel_values"], atol=1e-5)


def test_images_of_several_sizes_go_in_order(tmp_path: Path) -> None:
    stock = Qwen2VLImageProcessorPil()
    paths = [
        photograph(tmp_path / f"{number}.png", *size) for number, size in enumerate([(64, 64), (64, 70), (90, 60), (64, 64)])
    ]
    reader = PixelReader(stock, torch.device("cpu"))
    expected = stock(images=[Image.open(path) for path in paths], return_tensors="pt")["pixel_values"]
    assert torch.allclose(reader.patches([reader.read(path) for path in paths]), expected, atol=1e-5)


def test_settings_of_the_processor_count(tmp_path: Path) -> None:
    plain = Qwen2VLImageProcessorPil(do_rescale=False, do_normalize=False, do_resize=False)
    path = photograph(tmp_path / "photograph.png", 56, 28)
    reader = PixelReader(plain, torch.device("cpu"))
    expected = plain(images=[Image.open(path)], return_tensors="pt")["pixel_values"]
    assert torch.equal(reader.patches([reader.read(path)]), expected)
    with pytest.raises(InvalidInput, match="57 × 28 pixels, the model takes multiples of 28"):
        reader.read(photograph(tmp_path / "odd.png", 57, 28))


def test_images_that_no_model_takes_are_refused(tmp_path: Path) -> None:
    reader = PixelReader(Qwen2VLImageProcessorPil(), torch.device("cpu"))
    with pytest.raises(InvalidInput, match=r"thin\.png cannot be read: absolute aspect ratio"):
        reader.read(photograph(tmp_path / "thin.png", 4, 2000))
    with pytest.raises(InvalidInput, match=r"absent\.png"):
        reader.read(tmp_path / "absent.png")


def features(tokens: int) -> ImageFeatures:
    return ImageFeatures(ImageShape(tokens, tokens, 1), torch.zeros(tokens, 1))


def version(name: str) -> FileVersion:
    return Path(name), 0, 0


def test_the_least_recently_used_features_move_to_the_host_and_then_go() -> None:
    cache = FeatureCache(device_bytes=8, host_bytes=4)
    a, b, c = (version(name) for name in "abc")
    for one in (a, b):
        cache.put(one, features(1))
    assert cache.get(a) is not None
    cache.put(c, features(1))
    assert len(cache) == 3
    cache.put(version("d"), features(1))
    assert [cache.get(one) is None for one in (a, b, c)] == [False, True, False]
    cache.put(version("large"), features(3))
    assert cache.get(version("large")) is None
    cache.clear_device()
    assert cache.get(c) is None


def test_without_room_on_the_host_features_are_dropped() -> None:
    cache = FeatureCache(device_bytes=8)
    for name in "abc":
        cache.put(version(name), features(1))
    assert [cache.get(version(name)) is None for name in "abc"] == [True, False, False]
    cache.put(version("b"), features(1))
    assert len(cache) == 2


def test_a_replaced_file_is_another(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("one")
    before = file_version(path)
    path.write_text("another")
    assert file_version(path) != before
    with pytest.raises(InvalidInput, match="absent"):
        file_version(tmp_path / "absent")
