import re
from dataclasses import replace

import numpy as np
import orjson
import pytest
import torch
from safetensors.numpy import load_file, save_file

from leverplus.checkpoints import FORMAT, CheckpointInfo, list_checkpoints, load_checkpoint, save_checkpoint
from leverplus.data_root import DataRoot
from leverplus.errors import Conflict, InvalidCheckpoint, NotFound
from leverplus.files import file_sha256
from leverplus.fingerprint import Fingerprint
from leverplus.selector import PointerSelectorV3, SelectorConfig, selector_from_checkpoint

CONFIG = SelectorConfig(12, 8, num_heads=2, num_layers=2, state_update="gate")


def info(checkpoint_id="ckpt-1", created_at="2026-01-01T00:00:00Z", config=CONFIG):
    return CheckpointInfo(
        checkpoint_id=checkpoint_id,
        format=FORMAT,
        selector=config.to_json(),
        dataset="tiny",
        pool_policy={"sampler": "all"},
        shots=[1, 2],
        fingerprint=Fingerprint(dataset={"name": "tiny"}, pool={"policy": {"sampler": "all"}, "embeddings": None}),
        training={"seed": 0},
        rl_data=[{"id": "rl-1", "sha256": "00"}],
        metrics={"reward": None},
        code_version="0.1.0",
        created_at=created_at,
    )


@pytest.fixture
def model():
    torch.manual_seed(0)
    return PointerSelectorV3(CONFIG).eval()


@pytest.fixture
def folder(tmp_path, model):
    save_checkpoint(tmp_path / "ckpt-1", model.tensors(), info())
    return tmp_path / "ckpt-1"


def test_both_files_can_be_read_by_the_same(folder):
    assert (folder / "model.safetensors").stat().st_mode == (folder / "checkpoint.json").stat().st_mode


def test_round_trip(folder, model):
    tensors, found = load_checkpoint(folder)
    assert found == replace(info(), model_sha256=file_sha256(folder / "model.safetensors"))
    assert found.selector_config == CONFIG
    for name, tensor in model.tensors().items():
        np.testing.assert_array_equal(tensors[name], tensor)
    again = selector_from_checkpoint(folder)
    assert not again.training
    query, candidates = torch.randn(2, 12), torch.randn(2, 5, 12)
    assert torch.equal(again(query, candidates, shots=2), model(query, candidates, shots=2))


def test_a_checkpoint_is_never_overwritten(folder, model):
    with pytest.raises(Conflict, match="never overwritten"):
        save_checkpoint(folder, model.tensors(), info())


def test_nothing_is_left_of_a_refused_save(tmp_path, model):
    tensors = model.tensors()
    del tensors["query_proj.weight"]
    with pytest.raises(InvalidCheckpoint, match=r"missing: \['query_proj.weight'\], unexpected: \[\]"):
        save_checkpoint(tmp_path / "c" / "x", tensors, info())
    with pytest.raises(InvalidCheckpoint, match="format is 'other'"):
        save_checkpoint(tmp_path / "c" / "x", model.tensors(), replace(info(), format="other"))
    assert not (tmp_path / "c").exists()


def rewrite_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    rewrite_info(folder, model_sha256=file_sha256(folder / "model.safetensors"))


def rewrite_info(folder, **change):
    path = folder / "checkpoint.json"
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), **change}))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop("attn_norms.1.bias"), "missing: ['attn_norms.1.bias'], unexpected: []"),
        (lambda t: t.update({"decoder_gru.bias_hh": np.zeros(3, np.float32)}), "unexpected: ['decoder_gru.bias_hh']"),
        (lambda t: t.update({"cand_proj.weight": np.zeros((8, 9), np.float32)}), "cand_proj.weight is float32 (8, 9), expected"),
        (lambda t: t.update({"cand_proj.weight": np.zeros((8, 8), np.float16)}), "cand_proj.weight is float16"),
        (lambda t: t.update({"cand_proj.weight": np.full((8, 8), np.nan, np.float32)}), "not finite"),
    ],
)
def test_tensors_are_loaded_strictly(folder, change, reason):
    rewrite_tensors(folder, change)
    with pytest.raises(InvalidCheckpoint, match=re.escape(reason)):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "lightning"}, "format is 'lightning', expected 'leverplus-checkpoint-1'"),
        ({"colour": "red"}, "unknown field 'colour'"),
        ({"shots": 2}, "field 'shots' is 2, expected a list"),
        ({"shots": ["2"]}, "field 'shots' is ['2'], expected whole numbers"),
        ({"created_at": 5}, "field 'created_at' is 5, expected a str"),
        ({"rl_data": [5]}, "field 'rl_data' holds 5"),
        ({"best_fixed": []}, "field 'best_fixed' is [], expected lists of pointers"),
        ({"best_fixed": {"2": [[1]]}}, "field 'best_fixed' is {'2': [[1]]}"),
        ({"best_fixed": {"1": [["1"]]}}, "field 'best_fixed' is"),
        ({"fingerprint": {"pool": 5}}, "fingerprint.pool is 5, expected an object"),
        ({"selector": {"d_model": 12, "depth": 3}}, "unknown field 'depth'"),
        ({"selector": {**CONFIG.to_json(), "num_layers": 1}}, "unexpected: ['attn_norms.1.bias'"),
        ({"model_sha256": "0" * 64}, "restore the whole folder"),
    ],
)
def test_checkpoint_json_is_checked(folder, change, reason):
    rewrite_info(folder, **change)
    with pytest.raises(InvalidCheckpoint, match=re.escape(reason)):
        load_checkpoint(folder)


def test_fixed_pointers_are_kept_and_their_absence_is_none(folder, tmp_path, model):
    save_checkpoint(tmp_path / "ckpt-2", model.tensors(), replace(info("ckpt-2"), best_fixed={"2": [[1, 2], [3, 4]]}))
    assert load_checkpoint(tmp_path / "ckpt-2")[1].best_fixed == {"2": [[1, 2], [3, 4]]}
    value = orjson.loads((folder / "checkpoint.json").read_bytes())
    del value["best_fixed"]
    (folder / "checkpoint.json").write_bytes(orjson.dumps(value))
    assert load_checkpoint(folder)[1].best_fixed == {}


def test_broken_files(folder, tmp_path):
    content = (folder / "checkpoint.json").read_bytes()
    value = orjson.loads(content)
    del value["metrics"]
    for broken, reason in (
        (content[:-9], "not JSON"),
        (b"[]", "a list, expected an object"),
        (orjson.dumps(value), "'metrics' is missing"),
    ):
        (folder / "checkpoint.json").write_bytes(broken)
        with pytest.raises(InvalidCheckpoint, match=reason):
            load_checkpoint(folder)
    (folder / "checkpoint.json").write_bytes(content)
    (folder / "model.safetensors").write_bytes(b"x")
    rewrite_info(folder, model_sha256=file_sha256(folder / "model.safetensors"))
    with pytest.raises(InvalidCheckpoint, match="not a safetensors file"):
        load_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InvalidCheckpoint, match="missing"):
        load_checkpoint(folder)
    with pytest.raises(NotFound, match="no checkpoint 'none'"):
        load_checkpoint(tmp_path / "none")


def test_list(tmp_path, model):
    root = DataRoot(tmp_path)
    assert list_checkpoints(root) == ([], {})
    for name, created_at in (("ckpt-b", "2026-01-01T00:00:00Z"), ("ckpt-a", "2026-01-02T00:00:00Z")):
        save_checkpoint(root.checkpoint(name), model.tensors(), info(name, created_at))
    (tmp_path / "checkpoints" / ".half-written.tmp").mkdir()
    (root.checkpoint("ckpt-c")).mkdir()
    (root.checkpoint("ckpt-c") / "checkpoint.json").write_text("{")
    good, broken = list_checkpoints(root)
    assert [found.checkpoint_id for found in good] == ["ckpt-b", "ckpt-a"]
    assert list(broken) == ["ckpt-c"]
    assert isinstance(broken["ckpt-c"], InvalidCheckpoint)
