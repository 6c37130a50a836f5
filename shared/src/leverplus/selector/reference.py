"""Selectors published by the reference: its `.pt` and `.ckpt` forms into PointerSelectorV3.

Accepted: {"model_state_dict": …} (its own trainer), {"state_dict": …} with any nesting of the prefixes `lever_lm.`,
`pointer_selector.` and `model.` (Lightning), a bare state dict; v2's `cross_attn.*` and `attn_norm.*` are layer 0.
Files are read with weights_only: nothing in them is executed.
"""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from leverplus.errors import InvalidCheckpoint, InvalidConfig, NotFound
from leverplus.selector.config import SelectorConfig, StateUpdate, tensor_shapes
from leverplus.selector.model import PointerSelectorV3, with_tensors
from leverplus.torch_files import load_plain

_log = logging.getLogger(__name__)

_PREFIXES = ("lever_lm.", "pointer_selector.", "model.")
_ALIASES = {"cross_attn.": "cross_attn_layers.0.", "attn_norm.": "attn_norms.0."}
_SELECTOR_KEY = re.compile(
    r"(input_proj|cross_attn|cross_attn_layers|attn_norm|attn_norms|query_proj|cand_proj|query_update_gate)\."
)
# Parts of the reference's other decoders. Dropping them would give a selector that chooses otherwise.
_OTHER_DECODERS = {
    "decoder_gru": "a GRU as state update",
    "step_emb": "step embeddings",
    "div_lambda": "an MMR penalty",
    "attn_Wq": "additive attention",
    "attn_Wc": "additive attention",
    "attn_v": "additive attention",
    "bilinear": "bilinear scoring",
    "topic_prototypes": "topic coverage",
    "query_topic_head": "topic coverage",
    "cover_lambda": "topic coverage",
    "query_update_weight": "a scalar state update",
    "stop": "a STOP token",
}


@dataclass(frozen=True)
class ReferenceImport:
    """What was read. `prefix`: what stood before the selector's keys. `unexpected`: keys that were left out, with those
    of encoders beside the selector. `missing`: keys of the selector that were not there (empty, or the import is refused).
    `training`: plain numbers and strings that lay beside the state dict (epoch, phase, kl_beta, metrics)."""

    model: PointerSelectorV3
    prefix: str
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    training: dict[str, Any] = field(default_factory=dict[str, Any])


def import_reference(path_or_state_dict: Path | str | Mapping[str, Any], num_heads: int = 1) -> PointerSelectorV3:
    """The selector of a published checkpoint, in eval mode; the state update is read off the keys, heads cannot be.

    Raises NotFound, InvalidCheckpoint (not readable, a key missing, of another shape, or of another decoder).
    """
    found = read_reference(path_or_state_dict, num_heads)
    if found.unexpected:
        _log.info("left out %d keys: %s", len(found.unexpected), ", ".join(found.unexpected))
    return found.model


def read_reference(path_or_state_dict: Path | str | Mapping[str, Any], num_heads: int = 1) -> ReferenceImport:
    """As `import_reference`, with the report of what was there."""
    if isinstance(path_or_state_dict, Mapping):
        name, loaded = "state dict", cast(Any, path_or_state_dict)
    else:
        name, loaded = str(path_or_state_dict), _load(Path(path_or_state_dict))
    state, training = _state_dict(name, loaded)
    prefix, selector, unexpected = _split(name, state)
    config = _config(name, selector, num_heads)
    shapes = tensor_shapes(config)
    missing = sorted(set(shapes) - set(selector))
    unexpected += sorted(set(selector) - set(shapes))
    if missing:
        raise InvalidCheckpoint(
            path=name, reason=f"keys of the selector are missing: {missing}; unexpected keys: {unexpected or 'none'}"
        )
    tensors = {key: selector[key].to(torch.float32) for key in shapes}
    for key, tensor in tensors.items():
        if tuple(tensor.shape) != shapes[key]:
            raise InvalidCheckpoint(path=name, reason=f"{key} is {tuple(tensor.shape)}, expected {shapes[key]}")
        if not bool(torch.isfinite(tensor).all()):
            raise InvalidCheckpoint(path=name, reason=f"{key} has values that are not finite")
    return ReferenceImport(with_tensors(PointerSelectorV3(config), tensors), prefix, (), tuple(unexpected), training)


def _load(path: Path) -> Any:
    if not path.is_file():
        raise NotFound(what="checkpoint file", name=str(path), hint="give the path of a .pt or .ckpt file")
    try:
        return load_plain(path)
    except pickle.UnpicklingError as exc:
        raise InvalidCheckpoint(
            path=path,
            reason=f"not a file of plain tensors: {exc}. If you trust the file, save its state dict alone: load it with "
            "torch.load(path, weights_only=False) and torch.save what lies under 'model_state_dict' or 'state_dict'",
        ) from exc


def _state_dict(name: str, loaded: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The innermost state dict and the plain values that lay beside it."""
    training: dict[str, Any] = {}
    value = loaded
    while isinstance(value, Mapping):
        mapping = cast(Mapping[str, Any], value)
        inner = next((key for key in ("model_state_dict", "state_dict") if isinstance(mapping.get(key), Mapping)), None)
        if inner is None:
            tensors = {str(key): item for key, item in mapping.items() if isinstance(item, Tensor)}
            if tensors:
                return tensors, training
            break
        training.update({key: _python(item) for key, item in mapping.items() if _is_plain(item)})
        value = mapping[inner]
    raise InvalidCheckpoint(path=name, reason="no state dict: expected tensors by name, 'state_dict' or 'model_state_dict'")


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in cast(dict[Any, Any], value).items())
    if isinstance(value, list):
        return all(_is_plain(item) for item in cast(list[Any], value))
    return value is None or isinstance(value, str | int | float | bool | np.number | np.bool_)


def _python(value: Any) -> Any:
    """A plain value with Python's numbers in place of NumPy's."""
    if isinstance(value, dict):
        return {key: _python(item) for key, item in cast(dict[str, Any], value).items()}
    if isinstance(value, list):
        return [_python(item) for item in cast(list[Any], value)]
    return value.item() if isinstance(value, np.generic) else value


def _split(name: str, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor], list[str]]:
    """(prefix, the selector's tensors by bare key, the other keys)."""
    prefixes = sorted({_prefix(key) for key in state if _bare(key).startswith("query_proj.")})
    if len(prefixes) > 1:
        raise InvalidCheckpoint(path=name, reason=f"holds several selectors, below {prefixes}; keep one of them")
    prefix = prefixes[0] if prefixes else ""
    selector: dict[str, Tensor] = {}
    unexpected: list[str] = []
    for key in sorted(state):
        bare = _bare(key)
        if prefixes and _prefix(key) != prefix:
            unexpected.append(key)
        elif _SELECTOR_KEY.match(bare):
            for old, new in _ALIASES.items():
                bare = new + bare.removeprefix(old) if bare.startswith(old) else bare
            if bare in selector:
                raise InvalidCheckpoint(path=name, reason=f"{bare} is there twice, under a v2 and a v3 name")
            selector[bare] = state[key]
        else:
            other = next((what for part, what in _OTHER_DECODERS.items() if re.match(rf"{part}(\.|_|$)", bare)), None)
            if other is not None:
                raise InvalidCheckpoint(
                    path=name, reason=f"key {key!r} belongs to a decoder with {other}, which this selector does not have"
                )
            unexpected.append(key)
    return prefix, selector, unexpected


def _prefix(key: str) -> str:
    return key[: len(key) - len(_bare(key))]


def _bare(key: str) -> str:
    while found := next((prefix for prefix in _PREFIXES if key.startswith(prefix)), None):
        key = key.removeprefix(found)
    return key


def _config(name: str, selector: Mapping[str, Tensor], num_heads: int) -> SelectorConfig:
    needed = ["query_proj.weight", "cand_proj.weight"]
    missing = [key for key in needed if key not in selector]
    layers = {int(found[1]) for key in selector if (found := re.match(r"cross_attn_layers\.(\d+)\.", key))}
    layers |= {int(found[1]) for key in selector if (found := re.match(r"attn_norms\.(\d+)\.", key))}
    if not layers:
        missing.append("cross_attn_layers.0.in_proj_weight")
    if missing:
        raise InvalidCheckpoint(path=name, reason=f"keys of the selector are missing: {missing}; found {sorted(selector)}")
    for key in ("query_proj.weight", "input_proj.weight"):
        if key in selector and selector[key].ndim != 2:
            raise InvalidCheckpoint(path=name, reason=f"{key} is {tuple(selector[key].shape)}, expected a matrix")
    hidden = int(selector["query_proj.weight"].shape[0])
    # Without an input projection the embeddings are as wide as the inside.
    d_model = int(selector["input_proj.weight"].shape[1]) if "input_proj.weight" in selector else hidden
    update: StateUpdate = "gate" if any(key.startswith("query_update_gate.") for key in selector) else "none"
    try:
        return SelectorConfig(d_model, hidden, num_heads=num_heads, num_layers=max(layers) + 1, state_update=update)
    except InvalidConfig as exc:
        raise InvalidCheckpoint(path=name, reason=str(exc)) from exc
