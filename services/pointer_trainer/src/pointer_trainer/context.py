"""What a job function is given."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import SecretStr

from leverplus.data_root import DataRoot
from leverplus.errors import Cancelled
from leverplus.files import Fence, unfenced
from leverplus.store import Job


class Children(Protocol):
    """The jobs that belong to a job. Any worker may run them, this one among others."""

    def list(self) -> Sequence[Job]:
        """All of them as they stand, by number."""
        ...

    def cancel(self) -> None:
        """Asks for the end of all that have not ended."""
        ...

    def run(self, job_id: str, watch: Callable[[], None]) -> bool:
        """Claims the job and does it here, as any worker would; False at once where it is not to be had.

        Whatever becomes of it stands in its row. `watch` is called now and then while it makes progress.
        """
        ...


Progress = Callable[[str, int, int, Mapping[str, Any]], None]
"""phase, step, total, further values. Raises LeaseLost when the job is no longer this worker's."""


@dataclass(frozen=True)
class JobContext:
    """One run of a job. Whatever it makes is named after `job_id`, so that a second run makes the same things.

    `run` counts the runs of the job from 1: it is the version of the lease. `fence` asks the job store whether the lease still
    holds, right before a file gets its name; LeaseLost where another worker has the job.
    """

    job_id: str
    config: Mapping[str, Any]
    data_root: DataRoot
    run_folder: Path
    scorer_urls: tuple[str, ...]
    threads: int
    progress: Progress
    should_stop: Callable[[], bool]
    logger: logging.Logger
    run: int = 1
    fence: Fence = unfenced
    scorer_key: SecretStr | None = None
    mlflow_uri: str | None = None
    """Where training's metrics also go."""
    parent: Job | None = None
    """The job that this one belongs to."""
    children: Children | None = None
    """None for a run outside of the job store."""

    @property
    def suffix(self) -> str:
        """What the ids of the job's products end in: job-3f9c2a makes rl-3f9c2a and ckpt-3f9c2a."""
        return self.job_id.removeprefix("job-")

    def step(self, phase: str, step: int, total: int, **extra: Any) -> None:
        """Reports progress; raises Cancelled once the job is to stop."""
        self.check()
        self.progress(phase, step, total, extra)

    def check(self) -> None:
        if self.should_stop():
            raise Cancelled(what=f"job {self.job_id}")


JobFunction = Callable[[JobContext], Mapping[str, Any]]
"""Does the job; what it returns is the job's result, in JSON types."""
