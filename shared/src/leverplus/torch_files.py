"""Reading foreign `.pt` files."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

# A NumPy number among the metrics of a training run: its constructor takes a dtype and bytes, and runs nothing else.
_NUMBER = np.float64(0).__reduce__()[0]
_INTEGERS = (np.bool_, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)
_NUMBERS = (*_INTEGERS, np.float16, np.float32, np.float64)
_SAFE: list[Any] = [
    # NumPy 2 writes the second name, NumPy 1 the first.
    (_NUMBER, "numpy.core.multiarray.scalar"),
    (_NUMBER, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(number)) for number in _NUMBERS),
]
_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;]*m")


def load_plain(path: Path) -> Any:
    """Content of a `.pt` file of tensors, plain containers and NumPy numbers; nothing in the file is executed (weights_only).

    Raises pickle.UnpicklingError with a one-line reason for any other content, OSError where the file cannot be read.
    """
    try:
        with torch.serialization.safe_globals(_SAFE):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as exc:
        # Bytes that are no pickle send the reader astray, and it fails in any way: KeyError, IndexError, struct.error…
        raise pickle.UnpicklingError(_reason(exc)) from exc


def _reason(exc: Exception) -> str:
    """One line; torch's own message is a page of advice that would have the file executed."""
    text = _TERMINAL_CODES.sub("", str(exc))
    if found := re.search(r"GLOBAL (\S+)", text):
        return f"it holds a Python object, {found[1]}"
    found = re.search(r"WeightsUnpickler error: (.+)", text)
    detail = found[1] if found else text.partition("\n")[0]
    return f"it is damaged, or was not written by torch.save: {type(exc).__name__} {detail[:120]}".strip()
