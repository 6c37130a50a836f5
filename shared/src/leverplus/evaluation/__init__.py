"""What an evaluation may claim: pure functions on accuracies per query. docs/evaluation.md says how to read them."""

from leverplus.evaluation.comparison import Cell, Difference, Evaluation, Row, summarise
from leverplus.evaluation.tables import accuracy_table, difference_table

__all__ = ["Cell", "Difference", "Evaluation", "Row", "accuracy_table", "difference_table", "summarise"]
