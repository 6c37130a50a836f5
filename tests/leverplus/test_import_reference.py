import re

import numpy as np
import pytest
import torch
from PIL import Image

from leverplus.errors import InvalidCheckpoint, NotFound
from leverplus.selector import PointerSelectorV3, SelectorConfig, import_reference, read_reference


def model(**config):
    torch.manual_seed(0)
    return PointerSelectorV3(SelectorConfig(**{"d_model": 12, "hidden_dim": 8, **config})).eval()


def under(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def v2_names(state):
    return {
        key.replace("cross_attn_layers.0.", "cross_attn.").replace("attn_norms.0.", "attn_norm."): value
        for key, value in state.items()
    }


ENCODERS = {"clip_model.visual.conv1.weight": torch.ones(2, 2), "lever_lm.img_model.proj": torch.ones(1)}
FORMS = {
    "own trainer": lambda s: {"model_state_dict": s, "epoch": 3, "phase": "rce", "kl_beta": 0.1, "metrics": {"loss": 1.5}},
    "bare": lambda s: s,
    "state_dict": lambda s: {"state_dict": s},
    "lever_lm": lambda s: {"state_dict": under("lever_lm.", s)},
    "pointer_selector": lambda s: {"state_dict": under("pointer_selector.", s)},
    "lightning": lambda s: {"state_dict": {**under("model.lever_lm.pointer_selector.", s), **ENCODERS}, "epoch": 3},
    "nested": lambda s: {"state_dict": {"model_state_dict": under("model.", s)}},
    "v2": lambda s: {"model_state_dict": v2_names(s)},
    "v2 in lightning": lambda s: {"state_dict": {**under("lever_lm.", v2_names(s)), **ENCODERS}},
    "half precision": lambda s: {key: value.half() for key, value in s.items()},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("update", ["none", "gate"])
def test_every_published_form(tmp_path, form, update):
    original = model(state_update=update, num_layers=1 if "v2" in form else 2)
    path = tmp_path / "selector.pt"
    torch.save(FORMS[form](original.state_dict()), path)
    for source in (path, str(path), FORMS[form](original.state_dict())):
        imported = import_reference(source)
        assert imported.config == original.config
        assert not imported.training
        for name, tensor in original.state_dict().items():
            expected = tensor.half().float() if form == "half precision" else tensor
            assert torch.equal(imported.state_dict()[name], expected)


def test_report():
    found = read_reference(FORMS["lightning"](model().state_dict()))
    assert found.prefix == "model.lever_lm.pointer_selector."
    assert found.unexpected == ("clip_model.visual.conv1.weight", "lever_lm.img_model.proj")
    assert found.missing == ()
    assert read_reference(FORMS["own trainer"](model().state_dict())).training == {
        "epoch": 3, "phase": "rce", "kl_beta": 0.1, "metrics": {"loss": 1.5},
    }  # fmt: skip


def test_heads_are_told_and_widths_are_read():
    original = model(num_heads=4)
    imported = import_reference(original.state_dict(), num_heads=4)
    query, candidates = torch.randn(2, 12), torch.randn(2, 5, 12)
    assert torch.equal(imported(query, candidates, shots=2), original(query, candidates, shots=2))
    assert import_reference(model(d_model=8).state_dict()).config == SelectorConfig(8, 8)
    with pytest.raises(InvalidCheckpoint, match="must divide hidden_dim, which is 8"):
        import_reference(original.state_dict(), num_heads=3)


def test_the_import_is_a_copy():
    state = model().state_dict()
    imported = import_reference(state)
    state["query_proj.weight"].zero_()
    assert imported.state_dict()["query_proj.weight"].abs().sum() > 0


@pytest.mark.parametrize(
    "key",
    [
        "query_proj.weight",
        "cand_proj.weight",
        "cross_attn_layers.0.out_proj.bias",
        "attn_norms.1.weight",
        "query_update_gate.bias",
    ],
)
def test_a_missing_key_is_refused(key):
    state = model(num_layers=2, state_update="gate").state_dict()
    del state[key]
    with pytest.raises(InvalidCheckpoint, match=rf"missing: \['{re.escape(key)}'"):
        import_reference({"state_dict": {**state, "clip.weight": torch.ones(1)}})


def test_missing_and_unexpected_are_both_listed():
    state = {**model().state_dict(), "clip.weight": torch.ones(1)}
    del state["attn_norms.0.bias"]
    with pytest.raises(InvalidCheckpoint, match=r"missing: \['attn_norms.0.bias'\]; unexpected keys: \['clip.weight'\]"):
        import_reference(state)


@pytest.mark.parametrize(
    ("key", "what"),
    [("decoder_gru.weight_ih", "a GRU"), ("step_emb.weight", "step"), ("div_lambda", "an MMR"), ("attn_v.weight", "additive")],
)
def test_other_decoders_are_refused(key, what):
    state = under("lever_lm.", {**model().state_dict(), key: torch.ones(1)})
    with pytest.raises(InvalidCheckpoint, match=f"'lever_lm.{key}' belongs to a decoder with {what}"):
        import_reference(state)


def test_refused_contents():
    state = model().state_dict()
    with pytest.raises(InvalidCheckpoint, match=r"several selectors, below \['', 'model.'\]"):
        import_reference({**state, **under("model.", state)})
    with pytest.raises(InvalidCheckpoint, match="is there twice, under a v2 and a v3 name"):
        import_reference({**state, **v2_names(state)})
    with pytest.raises(InvalidCheckpoint, match=r"cand_proj.weight is \(3, 3\), expected \(8, 8\)"):
        import_reference({**state, "cand_proj.weight": torch.ones(3, 3)})
    with pytest.raises(InvalidCheckpoint, match="not finite"):
        import_reference({**state, "cand_proj.weight": torch.full((8, 8), float("inf"))})
    with pytest.raises(InvalidCheckpoint, match="no state dict"):
        import_reference({"epoch": 3})
    with pytest.raises(InvalidCheckpoint, match="keys of the selector are missing"):
        import_reference({"state_dict": dict(ENCODERS)})


def test_numpy_numbers_among_the_metrics_are_plain(tmp_path):
    numbers = {"loss": np.float64(1.5), "best": [np.float32(0.5), np.int64(3)], "done": np.bool_(True)}
    path = tmp_path / "selector.pt"
    torch.save({"model_state_dict": model().state_dict(), "epoch": np.int32(3), "metrics": numbers}, path)
    found = read_reference(path).training
    assert found == {"epoch": 3, "metrics": {"loss": 1.5, "best": [0.5, 3], "done": True}}
    values = [found["epoch"], *found["metrics"]["best"], found["metrics"]["loss"], found["metrics"]["done"]]
    assert [type(value) for value in values] == [int, float, int, float, bool]


def test_files_are_read_without_executing_anything(tmp_path):
    path = tmp_path / "selector.pt"
    with pytest.raises(NotFound, match=r"selector\.pt"):
        import_reference(path)
    torch.save({"state_dict": model().state_dict(), "hyper_parameters": Image.new("RGB", (1, 1))}, path)
    with pytest.raises(InvalidCheckpoint, match="save its state dict alone"):
        import_reference(path)
    with pytest.raises(InvalidCheckpoint) as caught:
        import_reference(path)
    said = str(caught.value)
    assert "it holds a Python object, PIL.Image.Image. If you trust the file" in said
    assert not {"\n", "\x1b"} & set(said)
    assert "safe_globals" not in said
    path.write_bytes(b"")
    with pytest.raises(InvalidCheckpoint, match="not a file of plain tensors"):
        import_reference(path)
    path.write_text("hello")
    with pytest.raises(InvalidCheckpoint, match="not a file of plain tensors"):
        import_reference(path)
