"""A job's progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

if TYPE_CHECKING:
    from leverplus.client import TrainerClient

_LINE_EVERY_S = 5.0


class ProgressDisplay:
    """Shows phase, step and total of one piece of work under a title; `update` may be called as often as one likes.

    `stream` is where to; None is stdout."""

    def __init__(self, title: str, *, stream: TextIO | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._title = title
        self._begun = time.monotonic()
        self._said: tuple[str | None, float] = (None, 0.0)
        self._stream = stream
        console = Console(file=stream)
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description:<10}"),
                BarColumn(bar_width=32),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[phase]}", style="dim"),
            )
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task(title, total=None, phase="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, phase: str | None, step: int | None, total: int | None) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step or 0, total=total, phase=phase or "")
            return
        now = time.monotonic()
        if phase is not None and (phase != self._said[0] or now - self._said[1] >= _LINE_EVERY_S):
            count = f" {step}/{total}" if total else ""
            print(f"  {self._title}: {phase}{count} ({now - self._begun:.0f} s)", file=self._stream, flush=True)
            self._said = (phase, now)

    def done(self, note: str) -> None:
        """Fills the bar and says what came of it."""
        took = time.monotonic() - self._begun
        if self._bar is not None:
            total = self._bar.tasks[0].total or 1
            self._bar.update(self._task, completed=total, total=total, phase=note)
        else:
            print(f"  {self._title}: {note} ({took:.1f} s)", file=self._stream, flush=True)


def watch_job(
    client: TrainerClient,
    job_id: str,
    title: str,
    *,
    limit_s: float,
    note: Callable[[Mapping[str, Any]], str] | None = None,
    check: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Waits for a job and shows it; its result, or what made it fail.

    `note` makes the closing line from the result; `check` is called with every poll and may raise.
    """
    with ProgressDisplay(title) as display:

        def show(progress: Mapping[str, Any]) -> None:
            if check is not None:
                check()
            display.update(progress.get("phase"), progress.get("step"), progress.get("total"))

        result = client.wait(job_id, limit_s=limit_s, on_progress=show)
        display.done(note(result) if note is not None else "done")
    return result
