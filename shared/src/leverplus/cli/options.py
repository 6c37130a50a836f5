"""Options that several commands share. The command line and the services read the same variables."""

from __future__ import annotations

import os
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from leverplus.data_root import DataRoot
    from leverplus.dataset import Dataset

Data = Annotated[Path, typer.Option("--data", envvar="LEVERPLUS_DATA", help="Folder that holds everything.")]
DEFAULT_DATA = Path(".leverplus")

Vlm = Annotated[
    Path | None, typer.Option("--vlm", envvar="LEVERPLUS_VLM", help="Model directory; default: assets/in-context-vlm.")
]
Lora = Annotated[
    Path | None, typer.Option("--lora", envvar="LEVERPLUS_LORA", help="Folder of a LoRA adapter (peft) to the model directory.")
]
Device = Annotated[str, typer.Option(envvar="LEVERPLUS_DEVICE", help="auto, cpu, cuda or cuda:N.")]
Scorers = Annotated[
    str, typer.Option(envvar="LEVERPLUS_SCORERS", help="How many scorer processes, each on a GPU of its own; auto: one a GPU.")
]
Dtype = Annotated[str, typer.Option(envvar="LEVERPLUS_DTYPE", help="auto, float32 or bfloat16.")]

ScorerUrl = Annotated[str, typer.Option(envvar="LEVERPLUS_SCORER_URL", help="Where vqa_scorer is; of several, the first.")]
TrainerUrl = Annotated[str, typer.Option(envvar="LEVERPLUS_TRAINER_URL", help="Where pointer_trainer is.")]
SelectorUrl = Annotated[str, typer.Option(envvar="LEVERPLUS_SELECTOR_URL", help="Where selector_api is.")]
SCORER = "http://127.0.0.1:8001"
TRAINER = "http://127.0.0.1:8002"
SELECTOR = "http://127.0.0.1:8003"

ScorerPort = Annotated[int, typer.Option(min=1, max=65535, envvar="LEVERPLUS_SCORER_PORT")]
TrainerPort = Annotated[int, typer.Option(min=1, max=65535, envvar="LEVERPLUS_TRAINER_PORT")]
SelectorPort = Annotated[int, typer.Option(min=1, max=65535, envvar="LEVERPLUS_SELECTOR_PORT")]

ServiceKey = Annotated[
    str | None,
    typer.Option(
        "--key",
        envvar="LEVERPLUS_KEY",
        show_default=False,
        show_envvar=True,
        help="Key for services that ask for one; the variable keeps it out of the list of processes.",
    ),
]
"""Of `leverplus` itself, before the command."""
given_key: ContextVar[str | None] = ContextVar("given_key", default=None)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would go and how large it is, delete nothing.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Show the job's progress and its result, or only its id.")]


def data_root(data: Path) -> DataRoot:
    """InvalidConfig where `data` is something else than a folder."""
    from leverplus.data_root import DataRoot
    from leverplus.errors import InvalidConfig

    if data.exists() and not data.is_dir():
        raise InvalidConfig(field="--data", reason=f"{data} is not a folder")
    return DataRoot(data.resolve())


def require_folder(target: Path) -> None:
    """NotFound where the file `target` would be the first thing in its folder: a mistyped path makes none."""
    from leverplus.errors import NotFound

    if not target.parent.is_dir():
        raise NotFound(what="folder", name=str(target.parent), hint="make it first, or name another file to write")


def open_dataset(data: Path, name: str) -> Dataset:
    from leverplus.dataset import Dataset

    return Dataset.open(data_root(data).dataset(name))


def model_directory(vlm: Path | None) -> Path:
    """The model that was named, else the one that comes with the repository."""
    return vlm or asset("in-context-vlm", holding="config.json")


def asset(name: str, *, holding: str) -> Path:
    """A folder of assets/ below the working directory or the checkout: the first with that entry, else where it should be."""
    places = (Path("assets") / name, Path(__file__).parents[4] / "assets" / name)
    return next((place for place in places if (place / holding).exists()), places[0])


def scoring_model(vlm: Path | None) -> Path | None:
    """The model directory to score with; None where LEVERPLUS_OPENAI_URL names a server. InvalidConfig where both are named."""
    from leverplus.errors import InvalidConfig

    if not os.environ.get("LEVERPLUS_OPENAI_URL"):
        return model_directory(vlm)
    if vlm is not None:
        raise InvalidConfig(
            field="--vlm", reason=f"{vlm} and LEVERPLUS_OPENAI_URL are both set: the scorer asks one VLM, unset one"
        )
    return None


def scorer_count(scorers: str) -> int | None:
    """None for `auto`; InvalidConfig for what is neither that nor a number."""
    from leverplus.errors import InvalidConfig

    if scorers == "auto":
        return None
    if not scorers.isdecimal() or int(scorers) < 1:
        raise InvalidConfig(field="--scorers", reason=f"{scorers!r} is neither 'auto' nor a number of processes")
    return int(scorers)


def service_key() -> str | None:
    """The key to ask services with; empty counts as unset."""
    return given_key.get() or None


def require_scorer_key() -> None:
    """InvalidConfig where services that are to be started ask for keys, and the worker has none for its scorer."""
    from leverplus.errors import InvalidConfig

    if os.environ.get("LEVERPLUS_KEYS") and not os.environ.get("LEVERPLUS_SCORER_KEY"):
        raise InvalidConfig(
            field="LEVERPLUS_SCORER_KEY",
            reason="is unset, and LEVERPLUS_KEYS has the scorer ask for a key: give jobs one of role write",
        )


def redis_url() -> str | None:
    """REDIS_URL; empty counts as unset."""
    return os.environ.get("REDIS_URL") or None


def database_url() -> str | None:
    """DATABASE_URL; empty counts as unset."""
    return os.environ.get("DATABASE_URL") or None


def shared_url() -> str | None:
    """LEVERPLUS_SHARED; empty counts as unset."""
    return os.environ.get("LEVERPLUS_SHARED") or None


def item_ids(text: str, option: str) -> list[int]:
    """Of ids with commas between them; none of an empty text."""
    from leverplus.errors import InvalidInput

    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError as exc:
        raise InvalidInput(f"{option} {text!r}: write ItemIds with commas, e.g. 4,17") from exc


def one_query(query_id: int | None, question_id: str | None, dataset: Dataset) -> int:
    """The query that exactly one of the two options names."""
    from leverplus.errors import InvalidInput

    if (query_id is None) == (question_id is None):
        raise InvalidInput("name the query by --query-id or by --question-id")
    if question_id is not None:
        return dataset.id_of_question(question_id)
    assert query_id is not None
    return dataset.item(query_id).item_id
