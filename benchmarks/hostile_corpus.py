"""Broken files, made by code: RL files, checkpoints, images, datasets. A name says what is wrong with each."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

DEEP = 100_000
_HUGE = 10**400
_WRONG: dict[str, Any] = {
    "null": None,
    "text": "x",
    "empty_text": "",
    "number": 7,
    "float": 1.5,
    "true": True,
    "list": [],
    "list_of_lists": [[[]]],
    "object": {},
    "huge": _HUGE,
    "large": 2**70,
    "negative": -1,
    "nan": float("nan"),
    "infinite": float("inf"),
    "surrogate": "\ud800",
    "nul": "\x00",
    "path": "../../etc/passwd",
    "long": "x" * 200_000,
}


class Runs:
    """Unpickled, it leaves a file where it should not: proof that something was executed."""

    mark = "/tmp/leverplus-hostile-pickle"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return open, (self.mark, "w")


def bytes_anywhere(good: bytes) -> Iterator[tuple[str, bytes]]:
    """What is no file of any kind, and `good` cut and damaged."""
    yield "nul_bytes", bytes(4096)
    yield "ff_bytes", b"\xff" * 4096
    yield "utf16", "{}".encode("utf-16")
    yield "deep_lists", b"[" * DEEP
    yield "deep_objects", b'{"a":' * DEEP
    yield "deep_and_closed", b"[" * DEEP + b"]" * DEEP
    yield "html", b"<!doctype html><title>404</title>"
    yield "gzip", zlib.compress(good)
    yield "zip_bomb", zip_bomb()
    yield "pickle", pickle.dumps(Runs())
    yield "number_of_a_million_digits", b"9" * 1_000_000
    yield "bare_nan", b"NaN"
    for share in (0.2, 0.5, 0.9):
        yield f"cut_at_{share:.0%}", good[: int(len(good) * share)]


@cache
def zip_bomb() -> bytes:
    """64 MiB of nothing in some 64 KiB."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**26))
        archive.writestr("../../escaped", b"x")
    return stream.getvalue()


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True).encode()


def rl_files() -> Iterator[tuple[str, bytes]]:
    """RL JSON and NDJSON over the dataset `questions` (items 0 to 63)."""
    candidate = {"pointer": [1, 2], "gen_method": "random", "vqa_correct": 1, "vqa_acc_score": 1.0, "vqa_eval_mode": "file"}
    record = {"candidate_pool_ids": [1, 2, 3], "pointer_candidates": [candidate]}
    good = {"0": record}
    yield from bytes_anywhere(_json(good))
    for name, value in _WRONG.items():
        if name not in ("object",):
            yield f"file_is_{name}", _json(value)
        if name not in ("object",):
            yield f"query_is_{name}", _json({"0": value})
        if name not in ("list",):
            yield f"candidates_are_{name}", _json({"0": {**record, "pointer_candidates": value}})
        if name not in ("object", "list"):
            yield f"candidate_is_{name}", _json({"0": {**record, "pointer_candidates": [value]}})
        if name != "null":
            yield f"pool_is_{name}", _json({"0": {**record, "candidate_pool_ids": value}})
        if name not in ("list",):
            yield f"pointer_is_{name}", _json({"0": {**record, "pointer_candidates": [{**candidate, "pointer": value}]}})
        yield f"item_is_{name}", _json({"0": {**record, "pointer_candidates": [{**candidate, "pointer": [value, 2]}]}})
        if name not in ("null", "true"):
            yield f"accuracy_is_{name}", _json({"0": {**record, "pointer_candidates": [{**candidate, "vqa_acc_score": value}]}})
        yield f"line_is_{name}", b'{"_meta": {}}\n' + _json(value) + b"\n"
    for query in ("x", "-1", "64", str(2**70), "9" * 5000, "", "1.5", "0/../1"):
        yield f"query_id_{query[:6] or 'empty'}", _json({query: record})
    for pointer in ([1, 1], [1, 2, 3, 1], [0], [63], [64], [1, 2, 3, 4, 5], [2**70]):
        yield (
            f"pointer_{pointer[0]}_{len(pointer)}",
            _json({"0": {**record, "pointer_candidates": [{**candidate, "pointer": pointer}]}}),
        )
    yield "repeated_pool_id", _json({"0": {**record, "candidate_pool_ids": [1, 1, 2]}})
    yield "no_pool_of_this_dataset", _json({"0": {**record, "candidate_pool_ids": [1, 2, 64]}})


def picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(stream, "PNG")
    return stream.getvalue()


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG whose header claims this size, whatever it holds."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data or zlib.compress(b"")) + chunk(b"IEND", b"")


def images() -> Iterator[tuple[str, bytes]]:
    good = picture()
    yield "empty", b""
    # Pillow shows a picture of which only the end mark is missing.
    yield from ((name, content) for name, content in bytes_anywhere(good) if name != "cut_at_90%")
    yield "no_data", png(32, 32)
    yield "no_width", png(0, 32)
    yield "bomb_of_pixels", png(20_000, 20_000, zlib.compress(bytes(60_000)))
    yield "bomb_of_a_gigapixel", png(2**15, 2**15)
    yield "largest_claim", png(2**31 - 1, 2**31 - 1)
    yield "one_row_of_a_billion", png(10**9, 1)
    yield "text_chunk_bomb", good[:33] + _text_chunk() + good[33:57]
    yield "script", b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"><image href="file:///etc/passwd"/></svg>'
    yield "postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n"
    yield "url", b"http://127.0.0.1:1/picture.png"
    for kind in (
        "GIF89a",
        "II*\x00",
        "MM\x00*",
        "RIFF\xff\xff\xff\xffWEBP",
        "BM",
        "\x00\x00\x01\x00",
        "8BPS",
        "\xff\xd8\xff\xe0",
    ):
        yield f"only_the_mark_of_{kind[:4].encode('latin-1').hex()}", kind.encode("latin-1") + b"\x00" * 64


def _text_chunk() -> bytes:
    content = b"zTXt\x00\x00" + zlib.compress(bytes(2**26))
    return struct.pack(">I", len(content)) + b"zTXt" + content + struct.pack(">I", zlib.crc32(b"zTXt" + content))


Damage = Callable[[Path], None]


def _fields(file: str, fields: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, Damage]]:
    """`file` of a folder with each of `fields` replaced by what is wrong there, but for the kinds of value named beside it."""
    for field, fitting in fields.items():
        for name, value in _WRONG.items():
            if name in fitting:
                continue

            def damage(folder: Path, field: str = field, value: Any = value) -> None:
                path = folder / file
                first, *others = path.read_text().splitlines() if file.endswith("l") else [path.read_text()]
                changed = json.dumps({**json.loads(first), field: value})
                path.write_text("\n".join([changed, *others]))

            yield f"{field}_is_{name}", damage


def _contents(file: str, good: bytes) -> Iterator[tuple[str, Damage]]:
    for name, content in bytes_anywhere(good):
        yield f"{file}_{name}", lambda folder, content=content: _write(folder / file, content)
    yield f"{file}_missing", lambda folder: (folder / file).unlink()
    yield f"{file}_empty", lambda folder: _write(folder / file, b"")
    yield f"{file}_is_a_folder", lambda folder: ((folder / file).unlink(), (folder / file).mkdir())[1]
    yield f"{file}_links_to_itself", lambda folder: ((folder / file).unlink(), (folder / file).symlink_to(file))[1]
    yield f"{file}_links_to_a_device", lambda folder: ((folder / file).unlink(), (folder / file).symlink_to("/dev/null"))[1]


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def checkpoint_damages(good: Path) -> Iterator[tuple[str, Damage]]:
    """What may befall the folder of a checkpoint."""
    yield from _contents("checkpoint.json", (good / "checkpoint.json").read_bytes())
    yield from _contents("model.safetensors", (good / "model.safetensors").read_bytes())
    fields: dict[str, tuple[str, ...]] = {
        "format": (),
        "selector": (),
        # One that is not here may yet be brought.
        "dataset": ("text",),
        # All defaults: it can be read, and is no policy of this pool.
        "pool_policy": ("object",),
        "shots": (),
        # Without one it may be kept, and is not served.
        "fingerprint": ("object",),
        "model_sha256": (),
    }
    yield from _fields("checkpoint.json", fields)
    for name, length in (("short", 2), ("huge", 2**40), ("negative", 2**64 - 1)):
        content = struct.pack("<Q", length) + b"{}"
        yield f"tensors_with_a_{name}_header", lambda folder, content=content: _write(folder / "model.safetensors", content)


def dataset_damages(good: Path) -> Iterator[tuple[str, Damage]]:
    """What may befall the folder of a dataset; its hash is made to fit by who uses this, so that what it holds is read."""
    yield from _contents("dataset.json", (good / "dataset.json").read_bytes())
    yield from _contents("items.jsonl", (good / "items.jsonl").read_bytes())
    text = ("text", "empty_text", "path", "long", "nul")
    yield from _fields("items.jsonl", {"item_id": (), "question": text, "split": text, "image_id": text, "question_id": text})
    yield from _fields("items.jsonl", {"image": ("null",), "answers": ("null", "list"), "answer": ("null", *text)})


def pt_files() -> Iterator[tuple[str, bytes]]:
    """What may be handed over as a checkpoint or as embeddings of the reference."""
    good = _saved({"state_dict": {"a": torch.zeros(2, 2)}})
    yield from bytes_anywhere(good)
    yield "object", _saved(Runs())
    yield "object_among_tensors", _saved({"state_dict": {"a": torch.zeros(2)}, "config": Runs()})
    for name, value in _WRONG.items():
        yield f"value_is_{name}", _saved(value)
        yield f"state_is_{name}", _saved({"state_dict": {"input_proj.weight": value}})
    yield "not_finite", _saved(torch.full((4, 4), float("nan")))
    yield "no_numbers", _saved(torch.zeros(0, 0))
    yield "cube", _saved(torch.zeros(2, 2, 2))
    yield "claims_a_terabyte", _saved(torch.zeros(1).expand(2**38))


def _saved(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()
