"""Bodies of the requests that start jobs. A job's config is its request as it was checked, every default filled in."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from leverplus.ids import MAX_SHOTS
from leverplus.metric import PostprocessingName
from leverplus.pools import PoolPolicy
from pointer_trainer.openings import is_test
from pointer_trainer.settings import LONGEST_DAYS

Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Temperature = Annotated[float, Field(ge=0.01, le=100)]
Sampler = Literal["random", "similar_image", "similar_text", "similar_joint", "mixed", "all"]


class _Request(BaseModel):
    # `"older_than_days": false` is a slip, not 0 days.
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class PoolSettings(_Request):
    """How each query's pool is made."""

    sampler: Sampler = "random"
    k: Annotated[int, Field(ge=1, le=100_000, description="ids in a pool")] = 64
    seed: Seed = 0
    candidate_split: str = "train"
    exclude: list[Literal["query", "same_image"]] = ["query", "same_image"]

    def policy(self) -> PoolPolicy:
        return PoolPolicy(
            sampler=self.sampler, k=self.k, seed=self.seed, candidate_split=self.candidate_split, exclude=tuple(self.exclude)
        )


class EmbeddingsRequest(_Request):
    dataset: Name
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 32
    overwrite: Annotated[bool, Field(description="embed again what is embedded already")] = False


class LoggingMixture(_Request):
    """Independent draws from one distribution over the ordered pointers of each length, for off-policy estimates.

    A draw is uniform over all of them with probability `epsilon`, else from the checkpoint's selector at one of the temperatures,
    each alike. Only these draws have a propensity then.
    """

    draws: Annotated[int, Field(ge=1, le=1024, description="a query and number of shots; equal ones are one row with a count")]
    epsilon: Annotated[
        float | None,
        Field(gt=0, le=1, description="share of uniform draws; null: 0.2 with a checkpoint, 1 without, where nothing else is"),
    ] = None
    temperatures: Annotated[list[Temperature], Field(min_length=1, max_length=16)] = [1.0]

    @model_validator(mode="after")
    def _distinct(self) -> LoggingMixture:
        if len({f"{temperature:g}" for temperature in self.temperatures}) != len(self.temperatures):
            raise ValueError(f"temperatures {self.temperatures} names one twice")
        return self


class GenerateRequest(_Request):
    """Candidate pointers for queries of a split, scored by the VLM."""

    dataset: Name
    split: str = "train"
    queries: Annotated[int | None, Field(ge=1, description="so many, drawn with the seed; null: all of the split")] = None
    shots: Annotated[list[Annotated[int, Field(ge=1, le=MAX_SHOTS)]], Field(min_length=1, max_length=MAX_SHOTS)] = [2]
    num_beams: Annotated[int, Field(ge=0, le=64)] = 5
    temps: Annotated[list[Temperature], Field(max_length=16)] = [1.0, 1.3]
    num_samples_per_temp: Annotated[int, Field(ge=0, le=64)] = 2
    num_random: Annotated[int, Field(ge=0, le=64)] = 1
    num_retrieval: Annotated[int, Field(ge=0, le=64)] = 5
    num_answer: Annotated[
        int, Field(ge=0, le=64, description="pointers whose answers together hold the words of the query's own answer")
    ] = 0
    zero_shot: Annotated[bool, Field(description="add the empty pointer, which serves as a baseline")] = True
    logging: Annotated[
        LoggingMixture | None,
        Field(description="null: the samples and random pointers above are the draws that have a propensity, in fixed numbers"),
    ] = None
    pool: PoolSettings = PoolSettings()
    checkpoint: Annotated[Name | None, Field(description="null: a selector initialised with the seed")] = None
    flavour: Literal["official", "lever_plus"] = "official"
    postprocessing: PostprocessingName = "short-answer"
    gt_prob: Annotated[bool, Field(description="fill vqa_gt_prob, for rewards that are made of it")] = False
    info_score: Annotated[bool, Field(description="fill info_score, for reward mode hybrid")] = False
    seed: Seed = 0
    shard_queries: Annotated[
        int, Field(ge=1, le=100_000, description="queries in a shard, which one worker takes at a time and makes whole")
    ] = 500
    dry_run: Annotated[bool, Field(description="count pointers, images and hours, score none; on a sample of many queries")] = (
        False
    )

    @model_validator(mode="after")
    def _distinct_and_not_empty(self) -> GenerateRequest:
        if len(set(self.shots)) != len(self.shots):
            raise ValueError(f"shots {self.shots} names a number twice")
        if is_test(self.split):
            raise ValueError(
                f"split {self.split!r} is opened by the final evaluation only (`leverplus evaluate DATASET --final`): candidates "
                "are for train or val"
            )
        if len(set(self.temps)) != len(self.temps):
            raise ValueError(f"temps {self.temps} names a temperature twice")
        models = (self.num_beams, len(self.temps) * self.num_samples_per_temp)
        sources = (*models, self.num_random, self.num_retrieval, self.num_answer)
        if self.pool.sampler != "all" and self.pool.k < max(self.shots):
            raise ValueError(f"pool.k {self.pool.k} is smaller than the largest number of shots, {max(self.shots)}")
        if not any(sources) and self.logging is None:
            names = "num_beams, num_samples_per_temp, num_random, num_retrieval and num_answer"
            raise ValueError(f"{names} are all 0, and logging is null: nothing to generate")
        if self.logging is not None and self.logging.epsilon is None:
            self.logging = self.logging.model_copy(update={"epsilon": 1.0 if self.checkpoint is None else 0.2})
        if self.logging is not None and self.checkpoint is None and self.logging.epsilon != 1:
            raise ValueError(f"logging.epsilon is {self.logging.epsilon}, but no checkpoint is named to draw from; leave it out")
        return self


class ShardConfig(_Request):
    """Config of a job that makes one shard of the generation that is its parent."""

    shard: Annotated[int, Field(ge=1)]


class TrainRequest(_Request):
    rl_data: Annotated[list[Name], Field(min_length=1, max_length=100)]
    config: Annotated[dict[str, Any], Field(description="fields of TrainConfig; what is left out has its default")] = {}


class SweepRequest(_Request):
    """Training runs that differ in the values of `axes`: every combination is a train job of its own."""

    base: Annotated[TrainRequest, Field(description="what all of them have alike, as POST /train takes it")]
    axes: Annotated[
        dict[str, Annotated[list[Any], Field(min_length=1)]],
        Field(
            min_length=1,
            max_length=32,
            description="dotted config name -> its values; names joined by commas vary together, each value a list of as many",
            examples=[{"reward.hard_weight,reward.soft_weight": [[1, 1], [1, 0.5]], "seed": [0, 1]}],
        ),
    ]
    skip_untrainable: Annotated[
        bool, Field(description="leave out, and list as skipped, the combinations whose reward the RL data cannot give")
    ] = False


class SweepConfig(SweepRequest):
    """Config of a sweep job: what was asked for, and what was found in the RL data."""

    # JSON's keys are text.
    skipped: dict[Annotated[int, Field(strict=False)], str] = {}
    """Number of a combination that is not trained -> the reason."""


BaselineName = Literal["zero-shot", "random", "best-fixed", "similar-image", "similar-text", "similar-joint"]
BASELINES: tuple[BaselineName, ...] = get_args(BaselineName)
"""What every selector has to beat: no demonstrations, random ones, those that did best whatever the query, the nearest."""

Draws = Annotated[int, Field(ge=1, le=100, description="random pointers a query, whose accuracies are averaged")]
BootstrapDraws = Annotated[int, Field(ge=100, le=100_000)]


class FinalRun(_Request):
    """Opens the test split; that it was, by whom and for which checkpoints is recorded and told in every later report."""

    by: Annotated[str, Field(min_length=1, max_length=200, description="who opens it")]


class EvaluateRequest(_Request):
    """Systems on the same queries: the baselines, and the selector of each checkpoint (v0, v1, v2 or v3).

    Checkpoints that differ in nothing but their training seed are one system, whose seeds are drawn with the images.
    """

    dataset: Name
    split: Annotated[str, Field(description="tune on val; test is opened by a final run only")] = "val"
    final: Annotated[FinalRun | None, Field(description="needed for a test split, refused for another")] = None
    queries: Annotated[int | None, Field(ge=1, description="so many, drawn with the seed; null: all of the split")] = None
    sizes: Annotated[
        list[Annotated[int, Field(ge=2)]],
        Field(max_length=16, description="numbers of queries to report beside all of them, each a part of the next"),
    ] = [100, 200, 400, 800]
    checkpoints: Annotated[list[Name], Field(max_length=32)] = []
    shots: Annotated[list[Annotated[int, Field(ge=0, le=MAX_SHOTS)]], Field(min_length=1, max_length=MAX_SHOTS + 1)] = [
        *range(MAX_SHOTS + 1)
    ]
    draws: Draws = 5
    beam: Annotated[int, Field(ge=1, le=64)] = 1
    pool: Annotated[PoolSettings | None, Field(description="null: the checkpoints' own, or the default without any")] = None
    flavour: Literal["official", "lever_plus"] = "official"
    postprocessing: PostprocessingName = "short-answer"
    bootstrap_draws: BootstrapDraws = 10_000
    baselines: Annotated[
        list[BaselineName], Field(description="evaluated beside the checkpoints, which are compared with each of them")
    ] = [*BASELINES]
    seed: Seed = 0

    @model_validator(mode="after")
    def _distinct_with_baselines(self) -> EvaluateRequest:
        for name, values in (("shots", self.shots), ("checkpoints", self.checkpoints), ("baselines", self.baselines)):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} {values} names one twice")
        if self.pool is not None and self.pool.sampler != "all" and self.pool.k < max(self.shots):
            raise ValueError(f"pool.k {self.pool.k} is smaller than the largest number of shots, {max(self.shots)}")
        if not self.checkpoints and not self.baselines:
            raise ValueError("neither checkpoints nor baselines are named: nothing to evaluate")
        if is_test(self.split) and self.final is None:
            raise ValueError(
                f"split {self.split!r} is opened by the final evaluation only, which is recorded: tune on val, then state "
                '`final` {"by": your name} (`leverplus evaluate DATASET --final`)'
            )
        if self.final is not None and not is_test(self.split):
            raise ValueError(f"`final` opens a test split, but split is {self.split!r}")
        return self


class HeadroomRequest(_Request):
    """What choosing could gain on the queries of scored RL data, before any training."""

    rl_data: Name
    queries: Annotated[int | None, Field(ge=2, description="so many of its queries, drawn with the seed; null: all")] = 400
    draws: Draws = 5
    bootstrap_draws: BootstrapDraws = 10_000
    seed: Seed = 0


class EstimateRequest(_Request):
    """What a checkpoint's selector would score, from RL data with logging draws, without a VLM call."""

    rl_data: Name
    checkpoint: Name
    temperature: Annotated[
        Temperature, Field(description="of the softmax over the selector's logits: what is served is the limit of 0")
    ] = 1.0
    samples: Annotated[int, Field(ge=1, le=1024, description="pointers of the policy a query, for the reward model's mean")] = 64
    bootstrap_draws: BootstrapDraws = 10_000
    seed: Seed = 0


class PromoteRequest(_Request):
    """By the gate unless `override` is set."""

    alias: Name = "production"
    by: Annotated[str, Field(min_length=1, max_length=200)]
    reason: Annotated[str, Field(max_length=2000, description="recorded in the deployment; an override needs one")] = ""
    evaluation: Annotated[
        Name | None, Field(description="job that evaluated the checkpoint on val; null: the newest that did")
    ] = None
    override: Annotated[bool, Field(description="promote whatever the gate would say; recorded with `by` and `reason`")] = False

    @model_validator(mode="after")
    def _reasoned(self) -> PromoteRequest:
        if self.override and not self.reason.strip():
            raise ValueError("an override of the gate needs a reason, which is recorded")
        if self.override and self.evaluation is not None:
            raise ValueError("an override asks no evaluation: leave out one of the two")
        return self


class PruneRequest(_Request):
    """Which checkpoints go: those that meet every condition that is stated; one must be."""

    keep_best: Annotated[
        int | None, Field(ge=1, description="of each dataset the best by held-out expected accuracy stay, so many")
    ] = None
    older_than_days: Annotated[float | None, Field(ge=0, le=LONGEST_DAYS, description="younger ones stay")] = None
    dry_run: Annotated[bool, Field(description="say what would go, delete nothing")] = False


class RollbackRequest(_Request):
    by: Annotated[str, Field(min_length=1, max_length=200)]
