"""Reading foreign `.pt` files."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch


def load_plain(path: Path) -> Any:
    """Content of a `.pt` file of tensors and plain containers; nothing in the file is executed (weights_only).

    Raises pickle.UnpicklingError with a one-line reason for any other content, OSError where the file cannot be read.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as exc:
        # Bytes that are no pickle send the reader astray, and it fails in any way: KeyError, IndexError, struct.error…
        reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        raise pickle.UnpicklingError(reason) from exc
