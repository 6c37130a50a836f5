"""`leverplus index`: an approximate index in front of a deployed selector, for pools of very many items."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from leverplus.cli.options import DEFAULT_DATA, SCORER, Data, Json, ScorerUrl, data_root, service_key

if TYPE_CHECKING:
    from leverplus.data_root import DataRoot
    from leverplus.dataset import Dataset
    from leverplus.ids import ItemId


def register(app: typer.Typer) -> None:
    app.command("index")(index_command)


def index_command(
    dataset: Annotated[str, typer.Argument(help="Name of the dataset.")],
    name: Annotated[str, typer.Option(help="What `prefilter=` of /select calls it.")],
    checkpoint: Annotated[str | None, typer.Option(help="Id of the checkpoint; default: what --alias serves.")] = None,
    alias: Annotated[str, typer.Option(help="A deployment.")] = "production",
    handed_on: Annotated[int, typer.Option(min=1, help="So many candidates are ranked by the selector.")] = 256,
    groups: Annotated[int, typer.Option(min=1, help="So many means of candidates stand for the pool in its attention.")] = 256,
    lists: Annotated[int | None, typer.Option(min=1, help="Inverted lists; default: 4 times the root of the candidates.")] = None,
    probes: Annotated[int | None, typer.Option(min=1, help="Lists to search; default: as many as --recall takes.")] = None,
    recall: Annotated[float, typer.Option(min=0, max=1, help="Of the exact pointers, on the queries that settle probes.")] = 0.99,
    queries: Annotated[int, typer.Option(min=2, help="Held-out queries: half settle the probes, half are measured.")] = 512,
    score: Annotated[bool, typer.Option("--score", help="Have the exact and the prefiltered choices scored as well.")] = False,
    scorer_url: ScorerUrl = SCORER,
    as_json: Json = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Build an index over the candidates as a checkpoint sees them, and measure what it loses."""
    import sys

    from leverplus.cli.job_progress import ProgressDisplay
    from leverplus.cli.output import print_json
    from leverplus.errors import Conflict
    from leverplus.prefilter.building import PrefilterConfig, build_prefilter

    root = data_root(data)
    checkpoint_id, of_dataset = _checkpoint(root, checkpoint, alias)
    if of_dataset != dataset:
        raise Conflict(
            f"checkpoint {checkpoint_id} is of dataset {of_dataset!r}, not {dataset!r}; name another with --checkpoint"
        )

    def accuracies(chosen: list[tuple[ItemId, tuple[list[int], list[int]]]]) -> dict[str, Any]:
        from leverplus.dataset import Dataset

        return _scored(Dataset.open(root.dataset(dataset), verify=False), scorer_url, chosen)

    config = PrefilterConfig(handed_on, groups, lists, probes, recall, queries)
    with ProgressDisplay("index", stream=sys.stderr) as display:
        manifest = build_prefilter(
            root, checkpoint_id, name, config, progress=display.update, score=accuracies if score else None
        )
    if as_json:
        print_json(manifest.to_json())
        return
    measured = manifest.measured
    print(f"{root.prefilter(checkpoint_id, name)}: {manifest.probes} of {manifest.lists} lists, hands on {manifest.handed_on}")
    print(
        f"of {measured.queries} {measured.split} queries, {measured.shots} shots: exact pointer handed on {measured.recall:.1%}, "
        f"the same pointer {measured.agreement:.1%}"
    )
    if measured.accuracy is not None:
        found = measured.accuracy
        interval = "no interval" if None in found["interval"] else "[{:+.1%}, {:+.1%}]".format(*found["interval"])
        print(
            f"accuracy {found['prefiltered']:.1%}, exact {found['exact']:.1%}; difference {found['difference']:+.1%} "
            f"{interval} over {found['queries']} queries"
        )


def _checkpoint(root: DataRoot, checkpoint: str | None, alias: str) -> tuple[str, str]:
    """Its id and dataset."""
    from leverplus.checkpoints import read_info
    from leverplus.deployments import read_deployment

    checkpoint_id = checkpoint or read_deployment(root, alias).checkpoint_id
    return checkpoint_id, read_info(root.checkpoint(checkpoint_id)).dataset


def _scored(dataset: Dataset, scorer_url: str, chosen: list[tuple[ItemId, tuple[list[int], list[int]]]]) -> dict[str, Any]:
    """Accuracies of both choices over the queries that have annotated answers."""
    import numpy as np

    from leverplus.client import ScorerClient
    from leverplus.errors import InvalidDataset
    from leverplus.evaluation import summarise
    from leverplus.scoring import ScoreQuery, ScoreRequest

    asked = [ScoreQuery(query_id=query_id, pointers=list(pointers)) for query_id, pointers in chosen]
    with (
        ScorerClient(scorer_url, key=service_key(), timeout_s=600) as scorer,
        scorer.score_stream(ScoreRequest(dataset=dataset.name, queries=asked)) as stream,
    ):
        scores = {result.query_id: [candidate.vqa_acc_score for candidate in result.candidates] for result in stream}
    known = [(query_id, scores[query_id]) for query_id, _ in chosen if None not in scores[query_id]]
    if not known:
        raise InvalidDataset(path=dataset.name, reason="none of the queries has annotated answers; leave --score out")
    shots = max(len(pointers[0]) for _, pointers in chosen)
    exact, prefiltered = np.asarray([pair for _, pair in known], dtype=np.float64).T
    images = [dataset.item(query_id).image_id for query_id, _ in known]
    found = summarise({("exact", shots): exact, ("prefiltered", shots): prefiltered}, images, baselines=["exact"])
    (difference,) = found.differences
    return {
        "queries": len(known),
        "exact": float(exact.mean()),
        "prefiltered": float(prefiltered.mean()),
        "difference": difference.difference,
        "interval": [difference.low, difference.high],
    }
