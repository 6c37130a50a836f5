"""Datasets: the folder format, and importers that write it."""

from leverplus.dataset.folder import Dataset, DatasetInfo, Item, majority_answer, no_such_dataset, write_dataset

__all__ = ["Dataset", "DatasetInfo", "Item", "majority_answer", "no_such_dataset", "write_dataset"]
