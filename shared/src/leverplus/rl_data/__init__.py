"""RL JSON: scored pointers, a query at a time, in and out of files."""

from leverplus.rl_data.cleaning import Dropped, read_dropping_invalid
from leverplus.rl_data.reading import RlStream, read, stream
from leverplus.rl_data.records import Candidate, EvalMode, PoolSource, QueryRecord, RlData, merge_duplicates
from leverplus.rl_data.report import inspect
from leverplus.rl_data.writing import write

__all__ = [
    "Candidate",
    "Dropped",
    "EvalMode",
    "PoolSource",
    "QueryRecord",
    "RlData",
    "RlStream",
    "inspect",
    "merge_duplicates",
    "read",
    "read_dropping_invalid",
    "stream",
    "write",
]
