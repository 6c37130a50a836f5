"""Commands on data: import, embed, pool. They call the functions that the services' jobs call."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leverplus.cli.options import DEFAULT_DATA, Data, Json, asset, data_root, one_query, open_dataset

imports = typer.Typer(help="Bring datasets and embeddings from foreign files.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(imports, name="import")
    app.command()(embed)
    app.command()(pool)


def _by_split(option: str, values: list[str]) -> dict[str, Path]:
    from leverplus.errors import InvalidInput

    named: dict[str, Path] = {}
    for value in values:
        split, mark, path = value.partition("=")
        if not (split and mark and path):
            raise InvalidInput(f"{option} {value!r}: write it as SPLIT=FILE, e.g. {option} val=questions.json")
        if split in named:
            raise InvalidInput(f"{option}: split {split!r} is named twice")
        named[split] = Path(path)
    return named


@imports.command("vqa")
def import_vqa_command(
    name: Annotated[str, typer.Argument(help="Name of the dataset to make.")],
    questions: Annotated[list[str], typer.Option(help="SPLIT=FILE, official VQA question JSON; once a split.")],
    annotations: Annotated[list[str] | None, typer.Option(help="SPLIT=FILE, annotation JSON; once a split.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the images, searched in depth.")] = None,
    no_images: Annotated[bool, typer.Option("--no-images", help="Import the text only.")] = False,
    dataset_version: Annotated[str, typer.Option("--version", help="Version of the data.")] = "1",
    licence: Annotated[str, typer.Option(help="Licence of the data.")] = "unknown",
    data: Data = DEFAULT_DATA,
) -> None:
    """Import official VQA JSON: VQAv2, OK-VQA, VizWiz, TextVQA."""
    from collections import Counter

    from leverplus.dataset import Dataset
    from leverplus.dataset.vqa import import_vqa
    from leverplus.errors import InvalidInput

    if (images is None) != no_images:
        raise InvalidInput("name the image folder with --images, or say --no-images")
    asked, answered = _by_split("--questions", questions), _by_split("--annotations", annotations or [])
    if unknown := sorted(set(answered) - set(asked)):
        raise InvalidInput(f"--annotations names split {unknown[0]!r}, --questions does not")
    folder = data_root(data).dataset(name)
    info = import_vqa(
        folder,
        name=name,
        splits={split: (path, answered.get(split)) for split, path in asked.items()},
        image_folder=images,
        version=dataset_version,
        licence=licence,
    )
    counts = ", ".join(f"{split} {count}" for split, count in info.splits.items())
    print(f"{folder}: {counts}; answers: {info.answers_source}; sha256 {info.sha256[:12]}")
    unanswered = Counter(item.split for item in Dataset.open(folder, verify=False).items if not item.answers)
    if unanswered:
        named = ", ".join(f"{split} {count}" for split, count in unanswered.items())
        print(f"without answers: {named}; they can be asked but neither scored nor shown as demonstrations")


@imports.command("easy-vqa")
def import_easy_vqa_command(
    name: Annotated[str, typer.Option(help="Name of the dataset to make.")] = "easy-vqa",
    train_images: Annotated[int | None, typer.Option(min=1, help="So many train images; default: all.")] = None,
    test_images: Annotated[int | None, typer.Option(min=1, help="So many test images; default: all.")] = None,
    questions_per_image: Annotated[int | None, typer.Option(min=1, help="At most so many questions an image.")] = None,
    val_share: Annotated[float, typer.Option(help="Share of the test images that becomes the val split.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Of the cut.")] = 0,
    data: Data = DEFAULT_DATA,
) -> None:
    """Import easy-vqa (shapes and colours, from the package of that name) or a cut of it."""
    from leverplus.dataset.easy_vqa import import_easy_vqa

    folder = data_root(data).dataset(name)
    info = import_easy_vqa(
        folder,
        name=name,
        train_images=train_images,
        test_images=test_images,
        questions_per_image=questions_per_image,
        val_share=val_share,
        seed=seed,
    )
    counts = ", ".join(f"{split} {count}" for split, count in info.splits.items())
    print(f"{folder}: {counts}; answers: {info.answers_source}; sha256 {info.sha256[:12]}")


@imports.command("embeddings")
def import_embeddings_command(
    dataset: Annotated[str, typer.Argument(help="Name of the dataset.")],
    folders: Annotated[
        list[str], typer.Argument(metavar="FOLDER...", help="With the two .pt files of one split; several as SPLIT=FOLDER.")
    ],
    split: Annotated[str, typer.Option(help="The split of a FOLDER that names none.")] = "train",
    overwrite: Annotated[bool, typer.Option(help="Replace embeddings that are there.")] = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Import the reference's query_embeddings.pt and candidate_embeddings.pt; splits that are not named have no vectors."""
    from leverplus.embeddings.reference import read_pairs
    from leverplus.errors import Conflict

    opened = open_dataset(data, dataset)
    # A path with "=" in it is still a folder.
    named = [text if "=" in text and not Path(text).is_dir() else f"{split}={text}" for text in folders]
    folder = data_root(data).embeddings(dataset)
    if folder.exists() and not overwrite:
        raise Conflict(f"{folder} already holds embeddings; say --overwrite to replace them")
    manifest = read_pairs(_by_split("FOLDER", named), opened).save(folder, overwrite=overwrite)
    covered = opened.splits if manifest.splits is None else manifest.splits
    rows = sum(len(opened.split_ids(name)) for name in covered)
    print(f"{folder}: {rows} of {manifest.count} items (split {', '.join(covered)}), d_model {manifest.d_model}")


@imports.command("demo")
def import_demo_command(
    shipped: Annotated[Path | None, typer.Option(help="Checkpoint and RL data; default: assets/demo.")] = None,
    made: Annotated[
        Path | None, typer.Option(help="Data folder to copy dataset and embeddings from; default: they are made.")
    ] = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Fill a data folder with the demo's data and its trained checkpoint, ready to be served."""
    from leverplus.demo.ready_made import import_demo

    found = shipped or asset("demo", holding="checkpoint")
    import_demo(data_root(data), found, made=None if made is None else data_root(made), report=print)


@imports.command("invented-words")
def generate_invented_words_command(
    name: Annotated[str, typer.Option(help="Name of the dataset to make.")] = "invented-words",
    size: Annotated[str, typer.Option(help="full, demo or quick: so many items a split.")] = "full",
    seed: Annotated[int, typer.Option(min=0, help="Of languages, operations and pictures.")] = 0,
    data: Data = DEFAULT_DATA,
) -> None:
    """Generate a dataset on which the choice of demonstrations decides: words of languages that nobody speaks."""
    from leverplus.dataset.invented_words import SIZES, generate
    from leverplus.errors import InvalidInput

    if size not in SIZES:
        raise InvalidInput(f"--size {size!r}: there are {', '.join(SIZES)}")
    folder = data_root(data).dataset(name)
    info = generate(folder, name=name, seed=seed, **SIZES[size])
    counts = ", ".join(f"{split} {count}" for split, count in info.splits.items())
    print(f"{folder}: {counts}; answers: {info.answers_source}; sha256 {info.sha256[:12]}")


def embed(
    dataset: Annotated[str, typer.Argument(help="Name of the dataset.")],
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    overwrite: Annotated[bool, typer.Option(help="Replace embeddings that are there.")] = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Embed every item of a dataset: image and question, never the answer."""
    from leverplus.cli.job_progress import ProgressDisplay
    from leverplus.embeddings.encoders import embed_dataset
    from leverplus.errors import Conflict

    opened = open_dataset(data, dataset)
    folder = data_root(data).embeddings(dataset)
    if folder.exists() and not overwrite:
        raise Conflict(f"{folder} already holds embeddings; say --overwrite to replace them")
    with ProgressDisplay("embed") as display:
        embeddings = embed_dataset(
            opened, batch_size=batch_size, progress=lambda step, total: display.update("items", step, total)
        )
        manifest = embeddings.save(folder, overwrite=overwrite)
        display.done(f"{manifest.count} items, d_model {manifest.d_model}, {folder}")


def pool(
    dataset: Annotated[str, typer.Argument(help="Name of the dataset.")],
    query_id: Annotated[int | None, typer.Option(help="ItemId of the query.")] = None,
    question_id: Annotated[str | None, typer.Option(help="The dataset's own id of the query.")] = None,
    sampler: Annotated[str, typer.Option(help="random, similar_image, similar_text, similar_joint, mixed or all.")] = "random",
    k: Annotated[int, typer.Option("-k", "--k", help="Ids in the pool.")] = 64,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    candidate_split: Annotated[str, typer.Option(help="Where demonstrations come from.")] = "train",
    as_json: Json = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Show the pool of a query, in pool order."""
    from leverplus.cli.output import print_json, print_table
    from leverplus.embeddings import Embeddings
    from leverplus.fingerprint import digest
    from leverplus.pools import PoolPolicy, Pools

    opened = open_dataset(data, dataset)
    policy = PoolPolicy.from_json({"sampler": sampler, "k": k, "seed": seed, "candidate_split": candidate_split})
    folder = data_root(data).embeddings(dataset)
    needs_embeddings = sampler not in ("random", "all")
    embeddings = Embeddings.open(folder, opened) if needs_embeddings or folder.is_dir() else None
    pools = Pools(opened, embeddings, policy)
    query = opened.item(one_query(query_id, question_id, opened))
    ids = [int(item_id) for item_id in pools.pool(query.item_id)]
    if as_json:
        fingerprint = pools.fingerprint()
        print_json({"query_id": query.item_id, "pool": ids, "policy": policy.to_json(), "pool_fingerprint": digest(fingerprint)})
        return
    print_table(
        f"query {query.item_id}: {query.question} (image {query.image_id})",
        ("position", "item_id", "image_id", "question", "answer"),
        ((at, one, opened.item(one).image_id, opened.item(one).question, opened.item(one).answer) for at, one in enumerate(ids)),
    )
