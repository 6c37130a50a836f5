"""A LoRA adapter on a model: read by peft, merged into the weights, so that what answers is an ordinary model again."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from leverplus.errors import InvalidCheckpoint, NotFound, Unavailable

_WEIGHTS = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"


def merge_adapter(model: Any, folder: Path) -> tuple[Any, dict[str, Any]]:
    """The model with the adapter's weights added to its own, and the adapter's part of the fingerprint.

    NotFound where a file is missing, InvalidCheckpoint for an adapter that is no LoRA or was made for another model,
    Unavailable without peft. Pickled weights are not read.
    """
    for name in (_CONFIG, _WEIGHTS):
        if not (folder / name).is_file():
            pickled = "; adapter_model.bin is there, and pickles are not read" if (folder / "adapter_model.bin").exists() else ""
            raise NotFound(what="file of the LoRA adapter", name=str(folder / name), hint=f"LEVERPLUS_LORA names one{pickled}")
    described, rank_and_scale = _described(folder)
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError as exc:
        raise Unavailable(
            what=f"the LoRA adapter {folder}",
            reason=f"peft cannot be imported: {exc}",
            hint="install it with `pip install leverplus-vqa-scorer[lora]`",
        ) from exc
    try:
        with safe_open(folder / _WEIGHTS, framework="pt") as stored:
            given = set(stored.keys())
        with warnings.catch_warnings():
            # peft warns of keys that are missing; they are refused below.
            warnings.simplefilter("ignore")
            adapted: Any = PeftModel.from_pretrained(model, folder, local_files_only=True)
        wanted = set(get_peft_model_state_dict(adapted))
        if given != wanted:
            reason = f"its weights are not those its configuration names: {_differences(wanted, given)}"
            raise InvalidCheckpoint(path=folder, reason=reason)
        merged = adapted.merge_and_unload().eval()
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as exc:
        if isinstance(exc, InvalidCheckpoint):
            raise
        said = " ".join(str(exc).split())
        raise InvalidCheckpoint(path=folder, reason=f"does not fit the model {type(model).__name__}: {said}") from exc
    return merged, {**described, **rank_and_scale}


def _described(folder: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Hashes of both files, rank and scale."""
    content = (folder / _CONFIG).read_bytes()
    try:
        config = json.loads(content)
        kind, shown = config["peft_type"], {"r": config["r"], "alpha": config["lora_alpha"]}
    except (ValueError, KeyError, TypeError) as exc:
        raise InvalidCheckpoint(path=folder / _CONFIG, reason=f"no configuration of a LoRA adapter: {exc!r}") from exc
    if kind != "LORA":
        raise InvalidCheckpoint(path=folder, reason=f"peft_type is {kind!r}, supported: 'LORA'")
    with (folder / _WEIGHTS).open("rb") as stream:
        weights = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"weights_sha256": weights, "config_sha256": hashlib.sha256(content).hexdigest()}, shown


def _differences(wanted: set[str], given: set[str]) -> str:
    parts = (("missing", wanted - given), ("unexpected", given - wanted))
    return "; ".join(f"{len(names)} {what}: {', '.join(sorted(names)[:3])}" for what, names in parts if names)
