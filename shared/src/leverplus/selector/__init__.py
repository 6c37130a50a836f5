"""Selectors: they score the candidates of a query's pool and pick demonstrations one after the other.

torch is loaded when the model is first asked for, not here: `leverplus.selector.config` is used where there is none.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from leverplus.selector.config import Architecture, SelectorConfig, StateUpdate, tensor_shapes

if TYPE_CHECKING:
    from leverplus.selector.autoregressive import AutoregressiveSelector
    from leverplus.selector.base import Selector
    from leverplus.selector.decoding import Beams, Samples, Selection
    from leverplus.selector.model import PointerSelectorV3, new_selector, selector_from_checkpoint
    from leverplus.selector.reference import ReferenceImport, import_reference, read_reference

__all__ = [
    "Architecture",
    "AutoregressiveSelector",
    "Beams",
    "PointerSelectorV3",
    "ReferenceImport",
    "Samples",
    "Selection",
    "Selector",
    "SelectorConfig",
    "StateUpdate",
    "import_reference",
    "new_selector",
    "read_reference",
    "selector_from_checkpoint",
    "tensor_shapes",
]

_MODULES = {
    "AutoregressiveSelector": "autoregressive",
    "Beams": "decoding",
    "PointerSelectorV3": "model",
    "ReferenceImport": "reference",
    "Samples": "decoding",
    "Selection": "decoding",
    "Selector": "base",
    "import_reference": "reference",
    "new_selector": "model",
    "read_reference": "reference",
    "selector_from_checkpoint": "model",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
