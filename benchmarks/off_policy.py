"""Whether off-policy estimates tell the truth: how often their 95 % intervals cover the exact value of a selector.

    leverplus import invented-words --data DATA && leverplus embed invented-words --data DATA
    python benchmarks/off_policy.py --data DATA

assets/reward-table holds the reward of every two-shot pointer, so a policy's expected accuracy is exact. The selector is trained
on the first train queries of the table; the others are the population that it is judged on. Each of 200 resamples draws images of
it with replacement, then logs independent draws for their queries from a stated mixture, and estimates from those alone.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from objectives_table import one_shot_data
from provenance import RESULTS, ROOT, commit, machine
from reward_world import Material, open_material, training

from leverplus.errors import InvalidInput
from leverplus.evaluation.off_policy import LoggedDraws, OffPolicy, estimate, fit_reward_model
from leverplus.files import write_json
from leverplus.ids import ItemId
from leverplus.reward_table import all_pointers, columns
from leverplus.selector import Selector, selector_from_checkpoint
from pointer_trainer.pointer_features import item_features, pointer_features
from pointer_trainer.proposals import initialised_selector
from pointer_trainer.tempered import tempered_logprobs

SHOTS, FOLDS = 2, 5
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Population:
    """Queries with everything that is exact: rewards [Q, 4032], features of the pool's items [Q, 64, f], image of each."""

    rewards: Floats
    items: Floats
    images: NDArray[np.int64]
    query: torch.Tensor
    candidates: torch.Tensor
    pointers: NDArray[np.int64]

    def probabilities(self, selector: Selector, temperature: float) -> Floats:
        """[Q, 4032] under softmax(logits / temperature)."""
        pointers, found = torch.from_numpy(self.pointers), np.empty_like(self.rewards)
        for row in range(len(found)):
            with torch.no_grad():
                encoded = selector.encode(self.query[row : row + 1], self.candidates[row : row + 1])
            found[row] = tempered_logprobs(selector, encoded, pointers[None], [temperature])[0, :, 0].exp().numpy()
        return found / found.sum(axis=1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / ".leverplus", help="data root that holds dataset and embeddings")
    parser.add_argument("--trained-on", type=int, default=1000, help="train queries that make the selector")
    parser.add_argument("--population", type=int, default=2000, help="further train queries that it is judged on")
    parser.add_argument("--images", type=int, default=200, help="images of a resample")
    parser.add_argument("--draws", type=int, default=16, help="logged draws a query")
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULTS / "off_policy.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    material = open_material(arguments.data)
    target = trained(material, arguments.trained_on)
    logger, _ = initialised_selector(material.embeddings.manifest.d_model, 0)
    rows = slice(arguments.trained_on, arguments.trained_on + arguments.population)
    population = populate(material, rows)
    near, untrained = population.probabilities(target, 2.0), population.probabilities(logger, 1.0)
    uniform = np.full_like(near, 1 / near.shape[1])
    mixtures = {
        "0.2 uniform + 0.8 the selector at temperature 2": 0.2 * uniform + 0.8 * near,
        "0.2 uniform + 0.8 an untrained selector": 0.2 * uniform + 0.8 * untrained,
        "uniform": uniform,
    }
    report: dict[str, Any] = {"command": shlex.join(["python", *sys.argv]), "commit": commit(), "machine": machine()}
    settings = {"population": len(near), "images": arguments.images, "draws": arguments.draws, "resamples": arguments.resamples}
    report |= {**settings, "rows": []}
    for temperature in (1.0, 0.5):
        policy = population.probabilities(target, temperature)
        for name, mixture in mixtures.items():
            row = judged(population, policy, mixture, arguments)
            report["rows"].append({"temperature": temperature, "logged_by": name, **row})
            print(report["rows"][-1], flush=True)
    write_json(arguments.out, report)


def trained(material: Material, queries: int) -> Selector:
    config = {"rce_epochs": 5, "rce_lr": 1e-3, "hidden_dim": 64, "device": "cpu"}
    with training(config, [one_shot_data(material, queries)], material) as (folder, _):
        return selector_from_checkpoint(folder / "ckpt")


def populate(material: Material, rows: slice) -> Population:
    table, pools, embeddings = material.tables["train"], material.pools, material.embeddings
    ids = [ItemId(int(one)) for one in table.query_ids[rows]]
    drawn = [pools.pool(query_id) for query_id in ids]
    _, images = np.unique([material.dataset.item(query_id).image_id for query_id in ids], return_inverse=True)
    return Population(
        rewards=table.of_length(SHOTS)[rows],
        items=np.stack([item_features(embeddings, query_id, pool) for query_id, pool in zip(ids, drawn, strict=True)]),
        images=images.astype(np.int64),
        query=torch.from_numpy(embeddings.query[ids]),
        candidates=torch.from_numpy(embeddings.candidate[np.stack(drawn)]),
        pointers=all_pointers(table.pool_size)[columns(table.pool_size, SHOTS)],
    )


def judged(population: Population, policy: Floats, mixture: Floats, arguments: argparse.Namespace) -> dict[str, Any]:
    """Coverage, bias and error of each estimator over the resamples; how many were refused for their effective sample size."""
    truth = float((policy * population.rewards).sum(axis=1).mean())
    cumulative = np.cumsum(mixture, axis=1)
    found: list[OffPolicy] = []
    shares: list[float] = []
    for number in range(arguments.resamples):
        try:
            found.append(resample(population, policy, mixture, cumulative, arguments, number))
            shares.append(found[-1].effective_share)
        except InvalidInput as exc:
            shares.append(exc.context["effective_share"])
    row: dict[str, Any] = {"truth": truth, "effective_share": float(np.mean(shares)), "refused": arguments.resamples - len(found)}
    row["logged_mean"] = float((mixture * population.rewards).sum(axis=1).mean())
    for index, name in enumerate(("direct", "snips", "doubly_robust")):
        estimates = [one.estimates[index] for one in found]
        if estimates:
            values = np.asarray([one.value for one in estimates])
            row[name] = {
                "covered": sum(one.low <= truth <= one.high for one in estimates),
                "of": len(estimates),
                "bias": float(values.mean() - truth),
                "root_mean_square_error": float(np.sqrt(((values - truth) ** 2).mean())),
                "mean_half_width": float(np.mean([(one.high - one.low) / 2 for one in estimates])),
            }
    return row


def resample(
    population: Population, policy: Floats, mixture: Floats, cumulative: Floats, arguments: argparse.Namespace, seed: int
) -> OffPolicy:
    generator = np.random.default_rng(seed)
    of_image: dict[int, list[int]] = {}
    for row, image in enumerate(population.images.tolist()):
        of_image.setdefault(image, []).append(row)
    drawn_images = generator.integers(len(of_image), size=arguments.images)
    pairs = [(place, row) for place, image in enumerate(drawn_images.tolist()) for row in of_image[image]]
    rows = np.asarray([row for _, row in pairs])
    levels = generator.random((len(rows), arguments.draws))
    chosen = [np.searchsorted(cumulative[row], level * cumulative[row, -1]) for row, level in zip(rows, levels, strict=True)]
    actions = np.stack(chosen)
    query = np.repeat(np.arange(len(rows)), arguments.draws)
    row_of, action = rows[query], actions.ravel()
    # An image that is drawn twice lies in one fold: no query is predicted by what was fitted on its image.
    fold = drawn_images[[place for place, _ in pairs]] % FOLDS
    features = np.concatenate(
        [pointer_features(population.items[row], population.pointers[chosen]) for row, chosen in zip(rows, actions, strict=True)]
    )
    reward = population.rewards[row_of, action]
    model = fit_reward_model(features, reward, np.ones(len(query)), fold[query], FOLDS)
    expected = np.stack([mean_features(population, policy, row) for row in rows])
    logged = LoggedDraws(
        query=query,
        count=np.ones(len(query)),
        reward=reward,
        weight=policy[row_of, action] / mixture[row_of, action],
        predicted=model.predict(features, fold[query]),
        expected=model.predict(expected, fold),
    )
    return estimate(logged, [str(place) for place, _ in pairs], bootstrap_draws=2000, seed=seed)


def mean_features(population: Population, policy: Floats, row: int) -> Floats:
    """[1 + S·f]: exact mean of pointer_features under the policy, from the probability of each item at each place."""
    items = population.items[row]
    places = [
        np.bincount(population.pointers[:, place], weights=policy[row], minlength=len(items)) @ items for place in range(SHOTS)
    ]
    return np.concatenate([[1.0], *places])


if __name__ == "__main__":
    main()
