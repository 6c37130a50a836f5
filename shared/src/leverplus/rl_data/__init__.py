"""RL JSON: scored pointers, a query at a time, in and out of files."""

from leverplus.rl_data.cleaning import stream_dropping_invalid
from leverplus.rl_data.dropped import Dropped
from leverplus.rl_data.filtering import Filter, filter_records
from leverplus.rl_data.legacy import InfoScoreSign
from leverplus.rl_data.merging import merge_files
from leverplus.rl_data.reading import RlStream, read, stream
from leverplus.rl_data.records import Candidate, EvalMode, PoolSource, QueryRecord, RlData, merge_duplicates, without_propensities
from leverplus.rl_data.report import inspect
from leverplus.rl_data.writing import record_lines, write, write_lines

__all__ = [
    "Candidate",
    "Dropped",
    "EvalMode",
    "Filter",
    "InfoScoreSign",
    "PoolSource",
    "QueryRecord",
    "RlData",
    "RlStream",
    "filter_records",
    "inspect",
    "merge_duplicates",
    "merge_files",
    "read",
    "record_lines",
    "stream",
    "stream_dropping_invalid",
    "without_propensities",
    "write",
    "write_lines",
]
