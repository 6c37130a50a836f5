"""The `leverplus` command.

What a command needs is imported when it runs: `leverplus --help` loads neither numpy nor torch.
"""

from __future__ import annotations

import typer

from leverplus.cli import (
    backups,
    checkpoints,
    data,
    disk,
    doctor,
    evaluation,
    jobs,
    keys,
    prefilters,
    processes,
    rl,
    scoring,
    services,
    shared,
)
from leverplus.cli.one_line_errors import OneLineErrors
from leverplus.cli.options import ServiceKey, given_key

app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for group in (data, scoring, services, evaluation, checkpoints, prefilters, processes, disk, backups, doctor):
    group.register(app)
app.add_typer(rl.app, name="rl")
app.add_typer(jobs.app, name="jobs")
app.add_typer(checkpoints.app, name="checkpoints")
app.add_typer(keys.app, name="keys")
app.add_typer(shared.app, name="shared")


@app.callback()
def options(key: ServiceKey = None) -> None:
    """Choosing in-context demonstrations for vision-language models."""
    given_key.set(key)


__all__ = ["app"]
