"""Every file of a data folder is counted once, under its kind."""

from __future__ import annotations

import os
from pathlib import Path

from leverplus.data_root import DataRoot
from leverplus.disk import usage

FILES = {
    "store.sqlite": ("scores and jobs", 1),
    "store.sqlite-wal": ("scores and jobs", 2),
    "datasets/toy/items.jsonl": ("datasets", 3),
    "datasets/toy/images/1.png": ("datasets", 4),
    "embeddings/toy/query.safetensors": ("embeddings", 5),
    "rl-data/rl-1.ndjson": ("rl-data", 6),
    "checkpoints/ckpt-1/model.safetensors": ("checkpoints", 7),
    "checkpoints/ckpt-1/index-a/index.faiss": ("indexes", 8),
    "runs/job-1/log.txt": ("run directories", 9),
    "runs/job-1/state-2.safetensors": ("training states", 10),
    "runs/job-1/tensorboard/rce/events": ("run directories", 11),
    "deployments/production.json": ("deployments", 12),
    "openings/toy.ndjson": ("deployments", 13),
    "logs/selector_api.log": ("logs", 14),
    "valkey/appendonlydir/a.aof": ("broker", 15),
    "checkpoints/.ckpt-2.0123abcd.trash/model.safetensors": ("left over", 16),
    "rl-data/.rl-2.ndjson.12.0123abcd.tmp": ("left over", 17),
    "demo/store.sqlite": ("other", 18),
    "launcher.lock": ("other", 19),
}


def test_every_file_counts_once_under_its_kind(tmp_path: Path) -> None:
    expected: dict[str, list[int]] = {}
    for name, (kind, size) in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
        expected.setdefault(kind, []).append(size)
    os.link(tmp_path / "datasets/toy/images/1.png", tmp_path / "datasets/toy/images/2.png")
    found = usage(DataRoot(tmp_path))
    assert {kind: (used.files, used.bytes) for kind, used in found.items()} == {
        kind: (len(sizes), sum(sizes)) for kind, sizes in expected.items()
    }


def test_a_folder_that_is_not_there_takes_nothing(tmp_path: Path) -> None:
    assert sum(used.bytes for used in usage(DataRoot(tmp_path / "none")).values()) == 0
