"""The steps of the main job, each a request to a service and what is said about its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leverplus.cli.evaluation import gate_note
from leverplus.cli.job_progress import ProgressDisplay, watch_job
from leverplus.client import ScorerClient, TrainerClient
from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset
from leverplus.demo.config import Cut, DemoConfig
from leverplus.errors import Conflict
from leverplus.ids import ItemId
from leverplus.launcher import Stack
from leverplus.scoring import ScoredCandidate, ScoreOptions, ScoreQuery, ScoreRequest
from leverplus.selection import Selection
from leverplus.selector_client import SelectorClient

STEP_LIMIT_S = 1200.0
ALIAS = "production"
OVERRIDE = "demo: to show what serving looks like, though the gate refused it"


@dataclass(frozen=True)
class Outcome:
    """What a run made. `report`: of the RL data; `selection`: the answer of GET /select; `answer`: what the VLM then said."""

    rl_data_id: str
    report: Mapping[str, Any]
    checkpoint_id: str
    curve: Path
    evaluation: Mapping[str, Any]
    selection: Mapping[str, Any]
    answer: ScoredCandidate


def run_main_job(config: DemoConfig, stack: Stack) -> Outcome:
    """embed, generate, train, evaluate, promote, select. Raises what made a step fail."""
    cut = config.cut
    with (
        TrainerClient(stack.trainer_url) as trainer,
        ScorerClient(stack.scorer_url) as scorer,
        SelectorClient(stack.selector_url) as selector,
    ):
        embed(trainer, stack, cut)
        rl_data_id, report = generate(trainer, stack, cut)
        checkpoint_id, curve = train(trainer, stack, cut, rl_data_id)
        evaluation = evaluate(trainer, stack, cut, checkpoint_id)
        promote(trainer, checkpoint_id)
        selection, answer = select(selector, scorer, config)
    return Outcome(rl_data_id, report, checkpoint_id, curve, evaluation, selection, answer)


def embed(trainer: TrainerClient, stack: Stack, cut: Cut) -> None:
    def note(result: Mapping[str, Any]) -> str:
        kept = ", kept from an earlier run" if result["kept"] else ""
        return f"{result['items']} items, d_model {result['d_model']}{kept}"

    watch_job(trainer, trainer.embed(cut.dataset), "embed", limit_s=STEP_LIMIT_S, note=note, check=stack.require_running)


def generate_request(cut: Cut) -> dict[str, Any]:
    return {"dataset": cut.dataset, "split": "train", "queries": cut.train_queries, **cut.generate}


def generate(trainer: TrainerClient, stack: Stack, cut: Cut) -> tuple[str, dict[str, Any]]:
    """Candidate pointers, scored: the id of the RL data, and the report on it."""

    def note(result: Mapping[str, Any]) -> str:
        report = result["report"]
        modes = ", ".join(f"{mode} {found['count']}" for mode, found in report["modes"].items() if found["count"])
        share = report["correct"]["share"]
        correct = "" if share is None else f", {100 * share:.1f} % answered correctly"
        return f"{report['candidates']} pointers of {report['queries']} queries scored ({modes}{correct})"

    job_id = trainer.generate(generate_request(cut))
    result = watch_job(trainer, job_id, "generate", limit_s=STEP_LIMIT_S, note=note, check=stack.require_running)
    return result["rl_data_id"], result["report"]


def train(trainer: TrainerClient, stack: Stack, cut: Cut, rl_data_id: str) -> tuple[str, Path]:
    """The checkpoint's id and the picture of its training."""

    def note(result: Mapping[str, Any]) -> str:
        metrics = result["metrics"]
        return f"{result['checkpoint_id']}, RCE, epoch {metrics['epoch']} of {cut.train['rce_epochs']} kept"

    job_id = trainer.train([rl_data_id], cut.train)
    result = watch_job(trainer, job_id, "train", limit_s=STEP_LIMIT_S, note=note, check=stack.require_running)
    return result["checkpoint_id"], Path(result["run_folder"]) / result["curves"][0]


def evaluate_request(cut: Cut, checkpoint_id: str) -> dict[str, Any]:
    return {
        "dataset": cut.dataset,
        "split": "val",
        "queries": cut.val_queries,
        "checkpoints": [checkpoint_id],
        "shots": list(cut.evaluate_shots),
    }


def evaluate(trainer: TrainerClient, stack: Stack, cut: Cut, checkpoint_id: str) -> dict[str, Any]:
    def note(result: Mapping[str, Any]) -> str:
        return f"{result['queries']} queries of {result['images']} images that nothing was trained on"

    # The test split stays closed: nothing here is a final result.
    job_id = trainer.evaluate(evaluate_request(cut, checkpoint_id))
    return watch_job(trainer, job_id, "evaluate", limit_s=STEP_LIMIT_S, note=note, check=stack.require_running)


def promote(trainer: TrainerClient, checkpoint_id: str) -> None:
    """By the gate; where it refuses, as it may on so few queries, by an override that says so."""
    with ProgressDisplay("promote") as display:
        try:
            deployment = trainer.promote(checkpoint_id, alias=ALIAS, by="leverplus demo")
        except Conflict as exc:
            print(f"  promote: the gate refused: {exc}", flush=True)
            deployment = trainer.promote(checkpoint_id, alias=ALIAS, by="leverplus demo", reason=OVERRIDE, override=True)
        display.done(f"{deployment['alias']} serves {checkpoint_id}; {gate_note(deployment)}")


def select(selector: SelectorClient, scorer: ScorerClient, config: DemoConfig) -> tuple[Selection, ScoredCandidate]:
    """Demonstrations for the first val query, and the VLM's answer with them."""
    dataset = Dataset.open(DataRoot(config.data).dataset(config.cut.dataset))
    query_id = dataset.split_ids("val")[0]
    with ProgressDisplay("select") as display:
        selection = selector.select(query_id=query_id, shots=2)
        answer = score_one(scorer, config.cut.dataset, query_id, selection["pointer"])
        display.done(f"query {query_id}: demonstrations {selection['pointer']}, the VLM answers {answer.vqa_pred_answer!r}")
    return selection, answer


def score_one(scorer: ScorerClient, dataset: str, query_id: ItemId, pointer: list[int]) -> ScoredCandidate:
    query = ScoreQuery(query_id=query_id, pointers=[pointer])
    request = ScoreRequest(dataset=dataset, queries=[query], options=ScoreOptions())
    return scorer.score(request).results[0].candidates[0]
