"""RL JSON: scored pointers, a query at a time, in and out of files."""

from leverplus.rl_data.cleaning import Dropped, read_dropping_invalid
from leverplus.rl_data.legacy import InfoScoreSign
from leverplus.rl_data.reading import iter_records, read
from leverplus.rl_data.records import Candidate, EvalMode, PoolSource, QueryRecord, RlData, merge_duplicates
from leverplus.rl_data.report import inspect
from leverplus.rl_data.writing import write

__all__ = [
    "Candidate",
    "Dropped",
    "EvalMode",
    "InfoScoreSign",
    "PoolSource",
    "QueryRecord",
    "RlData",
    "inspect",
    "iter_records",
    "merge_duplicates",
    "read",
    "read_dropping_invalid",
    "write",
]
