"""The demo from start to end: it starts the services, does the main job over HTTP, and shows what came of it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from leverplus.cli.job_progress import ProgressDisplay
from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset
from leverplus.demo.config import DemoConfig
from leverplus.demo.contact_sheet import Tile, draw_contact_sheet
from leverplus.demo.curl import curl_script
from leverplus.demo.folder import claim_folder, prepare_folder
from leverplus.demo.steps import Outcome, run_main_job
from leverplus.demo.table import print_evaluation
from leverplus.errors import LeverPlusError
from leverplus.files import atomic_file
from leverplus.launcher import Ports, Stack, StackConfig

_LOGS = ("vqa_scorer", "pointer_trainer", "pointer_trainer.worker", "selector_api")


def run_demo(config: DemoConfig) -> None:
    """Raises LeverPlusError, with the last log lines of the services, when a step fails; nothing runs afterwards."""
    begun = time.monotonic()
    claim_folder(config)

    def prepare() -> None:
        with ProgressDisplay("import") as display:
            display.done(prepare_folder(config))

    stack_config = StackConfig(
        data=config.data,
        vlm=config.vlm,
        ports=Ports.free(),
        redis_url=config.redis_url,
        # Scores are made anew by each run, so they never go to a database that outlives it.
        database_url=DataRoot(config.data).sqlite_url,
        threads=config.threads,
        # Nobody but this run asks its services, which listen on the loopback.
        variables={"LEVERPLUS_KEYS": ""},
    )
    with Stack.start(stack_config, prepare=prepare, report=_report) as stack:
        try:
            outcome = run_main_job(config, stack)
        except LeverPlusError as exc:
            # A process that has ended is a better account of a broken connection than the connection's own error.
            stack.require_running()
            exc.context.setdefault("tail", _last_lines(config.data))
            raise
        _show(config, stack, outcome)
        print(f"\nDone in {time.monotonic() - begun:.0f} s.", flush=True)
        if config.keep:
            print(
                "The services stay up until ^C; for commands in another shell:", *stack_config.exports(), sep="\n  ", flush=True
            )
            stack.keep_running(_report)


def _report(line: str) -> None:
    print(f"  start: {line}", flush=True)


def _show(config: DemoConfig, stack: Stack, outcome: Outcome) -> None:
    """Tables, then the files that were made."""
    print_evaluation(outcome.evaluation, outcome.report)
    results = config.results
    results.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(outcome.curve, results / "training_curve.png")
    draw_contact_sheet(_tiles(config, outcome), results / "demonstrations.png")
    script = curl_script(config, stack, outcome)
    for name, text in (("curl.sh", script), ("evaluation.md", outcome.evaluation["markdown"])):
        with atomic_file(results / name) as stream:
            stream.write(text.encode())
    print(f"\nThe same by hand ({results / 'curl.sh'}):\n\n{script}")
    print(f"table           {results / 'evaluation.md'}")
    print(f"training curve  {results / 'training_curve.png'}")
    print(f"one choice      {results / 'demonstrations.png'}", flush=True)


def _tiles(config: DemoConfig, outcome: Outcome) -> list[Tile]:
    dataset = Dataset.open(DataRoot(config.data).dataset(config.cut.dataset))
    tiles: list[Tile] = []
    for number, chosen in enumerate(outcome.selection["icds"], start=1):
        item = dataset.item(chosen["item_id"])
        lines = (item.question, f"Short answer: {item.answer}")
        tiles.append(Tile(f"demonstration {number}: item {item.item_id}", dataset.image_path(item.item_id), lines))
    query = dataset.item(outcome.selection["query_id"])
    lines = (query.question, f"VLM: {outcome.answer.vqa_pred_answer}", f"annotated: {query.answer}")
    return [*tiles, Tile(f"query {query.item_id}", dataset.image_path(query.item_id), lines, is_query=True)]


def _last_lines(data: Path, lines: int = 6) -> list[str]:
    """The end of each service's log, each line under its service's name."""
    found: list[str] = []
    for name in _LOGS:
        path = data / "logs" / f"{name}.log"
        if path.is_file():
            found += [f"{name}: {line}" for line in path.read_text(errors="replace").splitlines()[-lines:]]
    return found
