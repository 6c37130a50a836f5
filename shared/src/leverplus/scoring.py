"""Wire format of POST /score, shared by the scorer and its clients."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from leverplus.ids import MAX_SHOTS

MAX_QUERIES = 10_000
MAX_POINTERS_PER_QUERY = 10_000

LARGEST_ITEM_ID = 2**53 - 1
"""The largest whole number that every JSON reader keeps exactly; a dataset is never that long."""

ItemIdField = Annotated[int, Field(ge=0, le=LARGEST_ITEM_ID, strict=True)]
PointerField = Annotated[list[ItemIdField], Field(max_length=MAX_SHOTS)]


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ScoreQuery(_Wire):
    query_id: ItemIdField
    pointers: Annotated[list[PointerField], Field(min_length=1, max_length=MAX_POINTERS_PER_QUERY)]


class ScoreOptions(_Wire):
    gt_prob: Annotated[bool, Field(description="Fill vqa_gt_prob; refused by engines without probabilities of answers")] = False
    info_score: Annotated[bool, Field(description="Fill info_score; refused likewise")] = False
    strict: Annotated[bool, Field(description="Refuse queries with fewer than ten annotated answers")] = False
    flavour: Literal["official", "lever_plus"] = "official"


class ScoreRequest(_Wire):
    dataset: str
    queries: Annotated[list[ScoreQuery], Field(min_length=1, max_length=MAX_QUERIES)]
    options: ScoreOptions = ScoreOptions()


class ScoredCandidate(_Wire):
    """The RL JSON fields that scoring fills. `vqa_correct` and `vqa_acc_score` are null without annotated answers.

    `vqa_gt_prob`: the sum over the distinct annotated answers of P(answer | prompt) · min(count / 3, 1); it may pass 1.
    `info_score`: P of the query's answer with the pointer minus P without its first demonstration; null for the empty pointer.
    P is exp(mean log-probability of the answer's tokens). Both are null where not asked for and without an answer.
    """

    pointer: PointerField
    vqa_raw_generation: str
    vqa_pred_answer: str
    vqa_correct: int | None
    vqa_acc_score: float | None
    vqa_eval_mode: Literal["file", "fallback", "error"]
    vqa_gt_prob: float | None = None
    info_score: float | None = None


class ScoredQuery(_Wire):
    query_id: ItemIdField
    candidates: list[ScoredCandidate]


class ScoreStats(_Wire):
    """Candidates of this answer by evaluation mode, and how many came from the store without a VLM call."""

    file: int
    fallback: int
    error: int
    cached: int


class ScoreResponse(_Wire):
    """Results in the order of the request. `fingerprint` has the parts dataset, generation and metric in full."""

    fingerprint: dict[str, Any]
    results: list[ScoredQuery]
    stats: ScoreStats
