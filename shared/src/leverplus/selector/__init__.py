"""PointerSelectorV3: scores the candidates of a query's pool and picks demonstrations one after the other.

torch is loaded when the model is first asked for, not here: `leverplus.selector.config` is used where there is none.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from leverplus.selector.config import SelectorConfig, StateUpdate, tensor_shapes

if TYPE_CHECKING:
    from leverplus.selector.decoding import Beams, Samples, Selection
    from leverplus.selector.model import PointerSelectorV3, selector_from_checkpoint
    from leverplus.selector.reference import ReferenceImport, import_reference, read_reference

__all__ = [
    "Beams",
    "PointerSelectorV3",
    "ReferenceImport",
    "Samples",
    "Selection",
    "SelectorConfig",
    "StateUpdate",
    "import_reference",
    "read_reference",
    "selector_from_checkpoint",
    "tensor_shapes",
]

_MODULES = {
    "Beams": "decoding",
    "PointerSelectorV3": "model",
    "ReferenceImport": "reference",
    "Samples": "decoding",
    "Selection": "decoding",
    "import_reference": "reference",
    "read_reference": "reference",
    "selector_from_checkpoint": "model",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
