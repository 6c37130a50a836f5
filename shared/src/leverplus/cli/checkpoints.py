"""Commands on checkpoints: list, delete, prune, and import-reference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leverplus.cli.options import DEFAULT_DATA, TRAINER, Data, DryRun, Json, TrainerUrl, data_root, open_dataset, service_key

if TYPE_CHECKING:
    from leverplus.dataset import Dataset
    from leverplus.pools import Pools


app = typer.Typer(help="Checkpoints of the trainer.", no_args_is_help=True)

_ACCURACY = "held_out_expected_accuracy"


@app.command("list")
def list_command(as_json: Json = False, trainer_url: TrainerUrl = TRAINER) -> None:
    """Every checkpoint, oldest first, with its held-out accuracy and the aliases that serve it."""
    from leverplus.cli.output import print_json, print_table
    from leverplus.client import TrainerClient

    with TrainerClient(trainer_url, key=service_key()) as client:
        listed, deployments = client.checkpoints(), client.deployments()
    if as_json:
        print_json({**listed, "deployments": deployments})
        return
    served: dict[str, list[str]] = {}
    for deployment in deployments:
        served.setdefault(deployment["checkpoint_id"], []).append(deployment["alias"])
    rows: list[list[object]] = []
    for info in listed["checkpoints"]:
        accuracy = info["metrics"].get(_ACCURACY)
        name = info["checkpoint_id"]
        known = None if accuracy is None else f"{accuracy:.4f}"
        rows.append([name, info["dataset"], info["created_at"][:19], known, ", ".join(served.get(name, []))])
    print_table(None, ("checkpoint", "dataset", "made (UTC)", "held-out accuracy", "served as"), rows)
    for dataset, openings in listed["test_openings"].items():
        last = openings[-1]
        print(f"test split of {dataset}: opened {len(openings)} times, last by {last['by']} on {last['at'][:16]} UTC")
    for broken in listed["broken"]:
        print(f"{broken['name']} cannot be read: {broken['reason']}")


@app.command()
def delete(
    checkpoint: Annotated[str, typer.Argument(help="Id of the checkpoint.")],
    dry_run: DryRun = False,
    trainer_url: TrainerUrl = TRAINER,
) -> None:
    """Delete a checkpoint that no alias serves or would roll back to, and no unfinished job needs."""
    from leverplus.cli.output import shown_bytes
    from leverplus.client import TrainerClient

    with TrainerClient(trainer_url, key=service_key()) as client:
        deleted = client.delete_checkpoint(checkpoint, dry_run=dry_run)
    print(f"{'would delete' if dry_run else 'deleted'} {checkpoint}, {shown_bytes(deleted['bytes'])}")


@app.command()
def prune(
    keep_best: Annotated[
        int | None, typer.Option(min=1, help="Of each dataset so many stay, the best by held-out accuracy.")
    ] = None,
    older_than: Annotated[float | None, typer.Option(min=0, help="Only those made so many days ago or earlier.")] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    trainer_url: TrainerUrl = TRAINER,
) -> None:
    """Delete the checkpoints that meet all conditions given; what an alias or an unfinished job needs stays."""
    from leverplus.cli.output import print_json, print_table, shown_bytes
    from leverplus.client import TrainerClient

    with TrainerClient(trainer_url, key=service_key()) as client:
        pruned = client.prune_checkpoints({"keep_best": keep_best, "older_than_days": older_than, "dry_run": dry_run})
    if as_json:
        print_json(pruned)
        return
    done = "would go" if dry_run else "deleted"
    rows = [(one["name"], done, shown_bytes(one["bytes"])) for one in pruned["deleted"]]
    rows += [(one["name"], "stays", one["reason"]) for one in pruned["kept"]]
    print_table(None, ("checkpoint", "", ""), rows)
    count = len(rows) - len(pruned["kept"])
    print(f"{count} checkpoint{'' if count == 1 else 's'} {done}, {shown_bytes(pruned['bytes'])}")


def register(app: typer.Typer) -> None:
    app.command("import-reference")(import_reference_command)


def import_reference_command(
    source: Annotated[Path, typer.Argument(help="A checkpoint (.pt, .ckpt) of the reference.")],
    checkpoint_id: Annotated[str, typer.Argument(help="Name of the checkpoint to make.")],
    dataset: Annotated[str, typer.Option(help="The dataset that it chooses from; its embeddings must be there.")],
    num_heads: Annotated[int, typer.Option(min=1, help="Attention heads: the keys do not tell.")] = 1,
    shots: Annotated[list[int] | None, typer.Option(min=1, max=4, help="Trained for so many shots; may be repeated.")] = None,
    sampler: Annotated[
        str | None, typer.Option(help="How its pools are made from now on; default: random, or from_pointers with --pool-ids.")
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", help="Ids in a pool.")] = 64,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    candidate_split: Annotated[str, typer.Option(help="Where demonstrations come from.")] = "train",
    pool_ids: Annotated[
        Path | None, typer.Option(help="JSON list of item ids: one pool for all queries, without the query itself.")
    ] = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Bring a checkpoint of the reference: then it can be evaluated, promoted and served like any other.

    The embeddings must be those that it was trained on. Their width is checked; where they came from cannot be.
    """
    from datetime import UTC, datetime

    from leverplus import __version__
    from leverplus.checkpoints import FORMAT, CheckpointInfo, save_checkpoint
    from leverplus.embeddings import Embeddings
    from leverplus.errors import InvalidCheckpoint, InvalidInput
    from leverplus.files import file_sha256
    from leverplus.fingerprint import Fingerprint
    from leverplus.pools import PoolPolicy, Pools
    from leverplus.selector.reference import read_reference

    opened = open_dataset(data, dataset)
    embeddings = Embeddings.open(data_root(data).embeddings(dataset), opened)
    chosen: dict[str, Any] = {"sampler": sampler or "random", "k": k, "seed": seed, "candidate_split": candidate_split}
    if pool_ids is not None:
        # As for RL data that names no pools: the stated list is the pool, also where an item shows the query's image.
        chosen |= {"sampler": sampler or "from_pointers", "ids": _ids(pool_ids), "exclude": ["query"]}
    elif sampler == "from_pointers":
        raise InvalidInput("sampler 'from_pointers' is a stated list of item ids: name its file with --pool-ids")
    policy = PoolPolicy.from_json(chosen)
    pools = Pools(opened, embeddings, policy)
    _require_a_pool(pools, opened)
    found = read_reference(source, num_heads)
    config = found.model.config
    if config.d_model != embeddings.manifest.d_model:
        raise InvalidCheckpoint(
            path=source,
            reason=f"reads vectors of {config.d_model}, the embeddings of {dataset!r} have {embeddings.manifest.d_model}; "
            "bring the embeddings that it was trained on",
        )
    info = CheckpointInfo(
        checkpoint_id=checkpoint_id,
        format=FORMAT,
        selector=config.to_json(),
        dataset=dataset,
        pool_policy=policy.to_json(),
        shots=sorted(set(shots or [2])),
        fingerprint=Fingerprint(dataset=opened.fingerprint(), pool=pools.fingerprint()),
        training={"imported_from": {"file": source.name, "sha256": file_sha256(source)}, "reference": found.training},
        rl_data=[],
        metrics={},
        code_version=__version__,
        created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
    save_checkpoint(data_root(data).checkpoint(checkpoint_id), found.model.tensors(), info)
    print(f"{data_root(data).checkpoint(checkpoint_id)}: {len(found.model.tensors())} tensors, {config}")
    print(f"missing keys: {', '.join(found.missing) or 'none'}")
    print(f"keys left out: {', '.join(found.unexpected) or 'none'}")


def _ids(path: Path) -> list[int]:
    import orjson

    from leverplus.errors import InvalidInput

    try:
        ids = orjson.loads(path.read_bytes())
    except OSError as exc:
        raise InvalidInput(f"--pool-ids {path}: {exc.strerror}") from exc
    except orjson.JSONDecodeError as exc:
        raise InvalidInput(f"--pool-ids {path}: not JSON: {exc}") from exc
    if not isinstance(ids, list) or not all(type(item_id) is int for item_id in ids):
        raise InvalidInput(f"--pool-ids {path}: expected a JSON list of item ids, e.g. [0, 1, 2]")
    return ids


def _require_a_pool(pools: Pools, dataset: Dataset) -> None:
    """Draws the pool of the query that has the fewest candidates: a k that is too large is told now, not when serving."""
    from collections import Counter

    ids = dataset.split_ids(pools.policy.candidate_split)
    items_of_image = Counter(dataset.item(item_id).image_id for item_id in ids)
    pools.pool(max(ids, key=lambda item_id: items_of_image[dataset.item(item_id).image_id]))
