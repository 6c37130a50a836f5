"""Pixels as transformers' own processor gives them, and features kept within bounds."""

from __future__ import annotations

import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from leverplus.errors import InvalidInput
from leverplus.images import FileVersion, file_version, read_image
from vqa_scorer.engines.data_urls import data_url
from vqa_scorer.engines.features import FeatureCache, ImageFeatures
from vqa_scorer.engines.pixels import PixelReader
from vqa_scorer.engines.prefixes import ImageShape
from vqa_scorer.planning import ReadableImages


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


def overwritten(data: bytes, changes: dict[int, int]) -> bytes:
    return bytes(changes.get(index, value) for index, value in enumerate(data))


@pytest.mark.parametrize(
    ("kind", "mode", "changes", "raised"),
    [
        ("AVIF", "RGB", dict.fromkeys(range(-20, 0), 255), RuntimeError),
        ("SPIDER", "F", {107: 78}, AttributeError),
        ("DDS", "RGB", {30: 113, 80: 151}, NotImplementedError),
    ],
)
def test_whatever_pillow_raises_for_a_broken_image_names_the_file(
    tmp_path: Path, kind: str, mode: str, changes: dict[int, int], raised: type[Exception]
) -> None:
    path = tmp_path / "broken"
    Image.new(mode, (24, 24)).save(path, kind)
    data = path.read_bytes()
    path.write_bytes(overwritten(data, {index % len(data): value for index, value in changes.items()}))
    with pytest.raises(InvalidInput, match="broken cannot be read: ") as refused:
        read_image(path)
    assert isinstance(refused.value.__cause__, raised), "Pillow has learnt it; the case can go"


def test_bytes_that_are_no_image_are_told_without_where_they_lie() -> None:
    with pytest.raises(InvalidInput) as refused:
        read_image(b"no image")
    assert str(refused.value) == "image that was sent cannot be read: it is no image, or of a format that is not known"


def test_an_image_of_too_many_pixels_is_refused_by_its_header(tmp_path: Path) -> None:
    """Both files end behind the header, so that reading on would tell of that."""
    for size, said in ((b"8001 8000", r"has 8001 × 8000 pixels, at most 64,000,000 are read"), (b"8000 8000", "cannot be read")):
        path = tmp_path / "large.ppm"
        path.write_bytes(b"P6 " + size + b" 255\n")
        for read in (read_image, data_url):
            with pytest.raises(InvalidInput, match=rf"large\.ppm {said}") as refused:
                read(path)
            assert refused.value.context == {"image": str(path)}


def test_a_long_image_is_refused_before_a_batch_has_it(tmp_path: Path) -> None:
    images = ReadableImages()
    images.check([photograph(tmp_path / "long.png", 2000, 10), photograph(tmp_path / "high.png", 10, 2000)])
    for size in ((2001, 10), (10, 2001)):
        with pytest.raises(InvalidInput, match=rf"thin\.png has {size[0]} × {size[1]} pixels, .* at most 200 times"):
            images.check([photograph(tmp_path / "thin.png", *size)])


def test_few_images_are_decoded_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [photograph(tmp_path / f"{number}.png", 20, 20) for number in range(12)]
    under_way: list[Path] = []
    counts: list[int] = []
    enough, gate = threading.Event(), threading.Event()

    def read(path: Path) -> Image.Image:
        under_way.append(path)
        counts.append(len(under_way))
        if len(under_way) == 4:
            enough.set()
        assert gate.wait(10)
        under_way.remove(path)
        return read_image(path)

    monkeypatch.setattr("vqa_scorer.planning.read_image", read)
    images = ReadableImages()
    with ThreadPoolExecutor(12) as threads:
        checks = [threads.submit(images.check, [path]) for path in paths]
        try:
            assert enough.wait(10)
            time.sleep(0.05)
        finally:
            gate.set()
        for check in checks:
            check.result(10)
    assert (len(counts), max(counts)) == (12, 4)


def features(tokens: int) -> ImageFeatures:
    return ImageFeatures(ImageShape(tokens, tokens, 1), torch.zeros(tokens, 1))


def version(name: str) -> FileVersion:
    return Path(name), 0, 0, 0, 0


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
    before, times = file_version(path), path.stat()
    path.write_text("another".upper())
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file_version(path) != before, "written in its place with its size and time"
    before = file_version(path)
    other = tmp_path / "other"
    shutil.copy2(path, other)
    other.replace(path)
    assert file_version(path) != before, "another file of that size and time"
    with pytest.raises(InvalidInput, match="absent"):
        file_version(tmp_path / "absent")
