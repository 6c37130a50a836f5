"""A query's own image is never shown to it with an answer beside it: which items of a pool would do that."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property

import numpy as np
import numpy.typing as npt

from leverplus.dataset import Dataset
from leverplus.errors import LeverPlusError


class OwnImage:
    """Tells items of one image: those with one image id, or with one image file."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._image_ids = _codes(item.image_id for item in dataset.items)
        # An item without a file shares it with none.
        self._files = _codes(item.image or f"no file {item.item_id}" for item in dataset.items)

    def shown_by(self, ids: npt.NDArray[np.int64], item_id: int) -> npt.NDArray[np.bool_]:
        """[K] whether each of `ids` [K] shows the image of `item_id`, or is that item."""
        same_id = self._image_ids[ids] == self._image_ids[item_id]
        return same_id | (self._files[ids] == self._files[item_id])

    def items_with_that_of(self, item_id: int) -> npt.NDArray[np.int64]:
        """Ids of every item that shows the image of `item_id`, itself among them."""
        same_id = self._image_ids == self._image_ids[item_id]
        return np.flatnonzero(same_id | (self._files == self._files[item_id]))

    def item_with(self, image: bytes) -> int | None:
        """An item whose image file holds exactly these bytes, None where there is none. Files are read at the first call's cost:
        their sizes, then those of this size."""
        for item_id in self._items_by_size.get(len(image), ()):
            # A file that is not there, or may not be read, is no item's image either.
            with suppress(LeverPlusError, OSError):
                if self._dataset.image_path(item_id).read_bytes() == image:
                    return item_id
        return None

    @cached_property
    def _items_by_size(self) -> dict[int, list[int]]:
        """One item of each image file, by the file's size in bytes."""
        found: dict[int, list[int]] = {}
        _, first = np.unique(self._files, return_index=True)
        for item_id in first.tolist():
            image = self._dataset.items[item_id].image
            if image is not None:
                with suppress(OSError):
                    found.setdefault((self._dataset.folder / image).stat().st_size, []).append(item_id)
        return found


def _codes(names: Iterable[str]) -> npt.NDArray[np.int32]:
    codes: dict[str, int] = {}
    return np.fromiter((codes.setdefault(name, len(codes)) for name in names), dtype=np.int32)
