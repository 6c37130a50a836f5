"""Commands on checkpoints: import-reference."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leverplus.cli.options import DEFAULT_DATA, Data, data_root, open_dataset


def register(app: typer.Typer) -> None:
    app.command("import-reference")(import_reference_command)


def import_reference_command(
    source: Annotated[Path, typer.Argument(help="A checkpoint (.pt, .ckpt) of the reference.")],
    checkpoint_id: Annotated[str, typer.Argument(help="Name of the checkpoint to make.")],
    dataset: Annotated[str, typer.Option(help="The dataset that it chooses from; its embeddings must be there.")],
    num_heads: Annotated[int, typer.Option(min=1, help="Attention heads: the keys do not tell.")] = 1,
    shots: Annotated[list[int] | None, typer.Option(min=1, max=4, help="Trained for so many shots; may be repeated.")] = None,
    sampler: Annotated[str, typer.Option(help="How its pools are made from now on.")] = "random",
    k: Annotated[int, typer.Option("-k", "--k", help="Ids in a pool.")] = 64,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    data: Data = DEFAULT_DATA,
) -> None:
    """Bring a checkpoint of the reference: then it can be evaluated, promoted and served like any other.

    The embeddings must be those that it was trained on. Their width is checked; where they came from cannot be.
    """
    from datetime import UTC, datetime

    from leverplus import __version__
    from leverplus.checkpoints import FORMAT, CheckpointInfo, save_checkpoint
    from leverplus.embeddings import Embeddings
    from leverplus.errors import InvalidCheckpoint
    from leverplus.files import file_sha256
    from leverplus.fingerprint import Fingerprint
    from leverplus.pools import PoolPolicy, Pools
    from leverplus.selector.reference import read_reference

    opened = open_dataset(data, dataset)
    embeddings = Embeddings.open(data_root(data).embeddings(dataset), opened)
    policy = PoolPolicy.from_json({"sampler": sampler, "k": k, "seed": seed})
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
        fingerprint=Fingerprint(dataset=opened.fingerprint(), pool=Pools(opened, embeddings, policy).fingerprint()),
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
