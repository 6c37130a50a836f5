"""The kinds of jobs and the functions that do them, each imported when its job runs: some bring torch with them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from pointer_trainer.context import JobContext, JobFunction

EMBED = "embed"
GENERATE = "generate"
GENERATE_SHARD = "generate-shard"
TRAIN = "train"
EVALUATE = "evaluate"
HEADROOM = "headroom"
ESTIMATE = "estimate"
SWEEP = "sweep"


def _imported(module: str, function: str) -> JobFunction:
    def do(context: JobContext) -> Mapping[str, Any]:
        return getattr(import_module(module), function)(context)

    return do


JOB_FUNCTIONS: Mapping[str, JobFunction] = {
    EMBED: _imported("pointer_trainer.jobs.embed", "embed"),
    GENERATE: _imported("pointer_trainer.jobs.generate", "generate"),
    GENERATE_SHARD: _imported("pointer_trainer.jobs.generate", "generate_shard"),
    TRAIN: _imported("pointer_trainer.jobs.train", "train_selector"),
    EVALUATE: _imported("pointer_trainer.jobs.evaluate", "evaluate"),
    HEADROOM: _imported("pointer_trainer.jobs.headroom", "headroom"),
    ESTIMATE: _imported("pointer_trainer.jobs.estimate", "estimate_selector"),
    SWEEP: _imported("pointer_trainer.jobs.sweep", "sweep"),
}
