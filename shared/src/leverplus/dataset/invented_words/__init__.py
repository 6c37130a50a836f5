"""A generated dataset on which the choice of demonstrations decides: invented words, hidden operations, and plain questions."""

from leverplus.dataset.invented_words.families import Structure, read_structures, suffices, sufficient_pointer
from leverplus.dataset.invented_words.generate import SIZES, Size, generate

__all__ = ["SIZES", "Size", "Structure", "generate", "read_structures", "suffices", "sufficient_pointer"]
