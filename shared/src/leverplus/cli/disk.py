"""`leverplus disk`: what takes the room, and what a retention would free."""

from __future__ import annotations

from typing import Annotated

import typer

from leverplus.cli.options import TRAINER, Json, TrainerUrl, service_key


def register(app: typer.Typer) -> None:
    app.command()(disk)


def disk(
    retention_days: Annotated[
        float | None, typer.Option(min=0, help="As if LEVERPLUS_RETENTION_DAYS were that; default: what the trainer has.")
    ] = None,
    as_json: Json = False,
    trainer_url: TrainerUrl = TRAINER,
) -> None:
    """What each kind of data takes, and what a retention would free. Deletes nothing."""
    from leverplus.cli.output import print_json, print_table, shown_bytes
    from leverplus.client import TrainerClient

    with TrainerClient(trainer_url, key=service_key()) as client:
        found = client.disk(retention_days=retention_days)
    if as_json:
        print_json(found)
        return
    days = found["retention_days"]
    rows = [
        (
            row["kind"],
            row["files"],
            shown_bytes(row["bytes"]),
            None if not row["retention_bytes"] else shown_bytes(row["retention_bytes"]),
        )
        for row in found["kinds"]
    ]
    total = sum(row["bytes"] for row in found["kinds"])
    freed = None if days is None else shown_bytes(sum(row["retention_bytes"] for row in found["kinds"]))
    rows.append(("all", sum(row["files"] for row in found["kinds"]), shown_bytes(total), freed))
    would_go = "a retention would free" if days is None else f"{days:g} days would free"
    print_table(None, ("what", "files", "size", would_go), rows)
    print(f"{shown_bytes(found['free_bytes'])} of {shown_bytes(found['total_bytes'])} free")
    if days is None:
        print("no retention: LEVERPLUS_RETENTION_DAYS of the trainer, or --retention-days to see what one would free")
