"""What an inference pipeline does with the selector: choose demonstrations, ask the VLM with them, judge its answers.

    leverplus up --data .leverplus/demo &         # after `make demo`
    python examples/downstream.py --data .leverplus/demo

The VLM is the scorer's, or with --openai-url and --openai-model that of an OpenAI-compatible server: it is sent the messages that
the selector hands out, in the prompt that the selector's training data were scored with. Prints the accuracy of each policy with
its 95 % interval over images, and differences to the first. Queries without annotated answers are left out. A look at test goes
on the record of the data root, as a final evaluation's does: --split val is free.
"""

from __future__ import annotations

import argparse
import getpass
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from leverplus.client import ScorerClient
from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset
from leverplus.deployments import DEFAULT_ALIAS
from leverplus.evaluation import Cell, accuracy_table, difference_table, summarise
from leverplus.ids import ItemId
from leverplus.metric import extract_answer, score_answer
from leverplus.random_order import derive_seed, random_first
from leverplus.scoring import ScoreQuery, ScoreRequest
from leverplus.selection import AskedQuery, Prompt, Selection
from leverplus.selector_client import SelectorClient
from pointer_trainer.openings import is_test, record_opening

Accuracies = list[float | None]
"""Of each query, 0 to 1; None without annotated answers."""


def ask_the_scorer(url: str, dataset: Dataset, chosen: Sequence[Selection]) -> Accuracies:
    queries = [ScoreQuery(query_id=answer["query_id"] or 0, pointers=[answer["pointer"]]) for answer in chosen]
    with ScorerClient(url, timeout_s=600) as scorer:
        response = scorer.score(ScoreRequest(dataset=dataset.name, queries=queries))
    return [result.candidates[0].vqa_acc_score for result in response.results]


def ask_a_server(url: str, model: str, dataset: Dataset, prompts: Sequence[Prompt]) -> Accuracies:
    accuracies: Accuracies = []
    with httpx.Client(timeout=600) as server:
        for prompt in prompts:
            limit = prompt["arguments"].get("max_new_tokens", 5)
            body = {"model": model, "messages": prompt["messages"], "temperature": 0, "max_tokens": limit}
            response = server.post(f"{url.rstrip('/')}/chat/completions", json=body).raise_for_status()
            answer = extract_answer(response.json()["choices"][0]["message"]["content"] or "")
            item = dataset.item(prompt["selection"]["query_id"] or 0)
            accuracies.append(score_answer(answer, item.answers).accuracy)
    return accuracies


def sampled_queries(dataset: Dataset, split: str, count: int) -> list[ItemId]:
    ids = np.asarray(dataset.split_ids(split), dtype=np.int64)
    return [ItemId(int(item_id)) for item_id in random_first(ids, min(count, len(ids)), derive_seed("downstream"))]


def evaluate(arguments: argparse.Namespace) -> str:
    """The tables, as Markdown."""
    root, shots = DataRoot(arguments.data), arguments.shots
    with SelectorClient(arguments.selector) as selector:
        served = next((found for found in selector.deployments() if found["alias"] == DEFAULT_ALIAS), None)
        if served is None or served["checkpoint"] is None:
            raise SystemExit(f"nothing is served under {DEFAULT_ALIAS!r}: {served and served['fault']}")
        dataset = Dataset.open(root.dataset(served["dataset"]))
        ids = sampled_queries(dataset, arguments.split, arguments.queries)
        if is_test(arguments.split):
            record_opening(
                root,
                dataset.name,
                job_id=f"downstream-{uuid.uuid4().hex[:12]}",
                by=arguments.by,
                split=arguments.split,
                queries=len(ids),
                checkpoints=[served["checkpoint"]],
                dataset_sha256=dataset.info.sha256,
            )
        asked = [AskedQuery(query_id=query_id) for query_id in ids]
        found: dict[Cell, Accuracies] = {}
        for policy in arguments.policies:
            if arguments.openai_url:
                prompts = selector.messages_many(asked, policy=policy, shots=shots)
                found[policy, shots] = ask_a_server(arguments.openai_url, arguments.openai_model, dataset, prompts)
            else:
                chosen = selector.select_many(asked, policy=policy, shots=shots)
                found[policy, shots] = ask_the_scorer(arguments.scorer, dataset, chosen)
    known = [number for number in range(len(ids)) if all(values[number] is not None for values in found.values())]
    if not known:
        raise SystemExit(f"none of {len(ids)} queries of split {arguments.split!r} has annotated answers")
    per_query = {cell: np.asarray([values[number] for number in known], dtype=np.float64) for cell, values in found.items()}
    images = [dataset.item(ids[number]).image_id for number in known]
    evaluation = summarise(per_query, images, baselines=arguments.policies[:1])
    head = f"VQA accuracy in % [95 % interval], {len(known)} {arguments.split} queries of {dataset.name}, {served['checkpoint']}"
    return f"{head}\n\n{accuracy_table(evaluation)}\n{difference_table(evaluation)}"


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options: list[tuple[str, dict[str, Any]]] = [
        ("--data", {"type": Path, "default": Path(".leverplus/demo"), "help": "data root of the services, for the answers"}),
        ("--selector", {"default": "http://127.0.0.1:8003"}),
        ("--scorer", {"default": "http://127.0.0.1:8001"}),
        ("--openai-url", {"help": "e.g. http://127.0.0.1:8000/v1, instead of the scorer"}),
        ("--openai-model", {"help": "its name at that server"}),
        ("--queries", {"type": int, "default": 100}),
        ("--split", {"default": "test"}),
        ("--by", {"default": getpass.getuser(), "help": "who looks at test"}),
        ("--shots", {"type": int, "default": 2}),
        ("--policies", {"nargs": "+", "default": ["random", "v3"], "help": "the first is the baseline"}),
    ]
    for name, settings in options:
        parser.add_argument(name, **settings)
    arguments = parser.parse_args(given)
    if arguments.openai_url and not arguments.openai_model:
        parser.error("--openai-url needs --openai-model")
    print(evaluate(arguments))


if __name__ == "__main__":
    main()
