"""Wire format of POST /score, shared by the scorer and its clients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator

from leverplus.ids import MAX_SHOTS
from leverplus.metric import PostprocessingName

MAX_QUERIES = 100_000
MAX_POINTERS_PER_QUERY = 10_000
MAX_POINTERS = 250_000
"""In one request: what is checked of it is held in memory."""

NDJSON = "application/x-ndjson"
"""What a client names in Accept to have its answer streamed."""

FALLBACK_WARNING_SHARE = 0.1
"""Share of candidates scored by the fallback past which scores are no longer what the official metric would say."""

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
    gt_prob: Annotated[StrictBool, Field(description="Fill vqa_gt_prob; refused by engines without probabilities of answers")] = (
        False
    )
    info_score: Annotated[StrictBool, Field(description="Fill info_score; refused likewise")] = False
    strict: Annotated[StrictBool, Field(description="Refuse queries with fewer than ten annotated answers")] = False
    flavour: Literal["official", "lever_plus"] = "official"
    postprocessing: Annotated[
        PostprocessingName, Field(description="How the answer is found in the VLM's text, which is stored as it is")
    ] = "short-answer"


class ScoreRequest(_Wire):
    dataset: str
    queries: Annotated[list[ScoreQuery], Field(min_length=1, max_length=MAX_QUERIES)]
    options: ScoreOptions = ScoreOptions()

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        found = sum(len(query.pointers) for query in self.queries)
        if found > MAX_POINTERS:
            raise ValueError(f"{found} pointers in one request, at most {MAX_POINTERS}: send several")
        return self


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


_COUNTS: tuple[Literal["file", "fallback", "error", "cached"], ...] = ("file", "fallback", "error", "cached")


class ScoreStats(_Wire):
    """Candidates of this answer by evaluation mode, and how many came from the store without a VLM call; `share` is of all its
    candidates (null without any). `warnings` says what makes the scores worth less than they look."""

    file: int
    fallback: int
    error: int
    cached: int
    share: dict[Literal["file", "fallback", "error", "cached"], float | None]
    warnings: list[str] = []

    @classmethod
    def counted(cls, *, file: int, fallback: int, error: int, cached: int) -> Self:
        """The statistics that these counts make."""
        total = file + fallback + error
        counts = {"file": file, "fallback": fallback, "error": error, "cached": cached}
        share = {name: count / total if total else None for name, count in counts.items()}
        warning = fallback_warning(fallback, total)
        return cls.model_validate({**counts, "share": share, "warnings": [] if warning is None else [warning]})

    @classmethod
    def total(cls, parts: Iterable[ScoreStats]) -> Self:
        """Of several answers together."""
        listed = list(parts)
        return cls.counted(**{name: sum(getattr(part, name) for part in listed) for name in _COUNTS})

    def without(self, part: ScoreStats) -> Self:
        """Of what is left when the candidates of `part` are taken away."""
        return self.counted(**{name: getattr(self, name) - getattr(part, name) for name in _COUNTS})


def fallback_warning(fallback: int, candidates: int) -> str | None:
    """What to say where more than FALLBACK_WARNING_SHARE of `candidates` were scored by the fallback; None otherwise."""
    if fallback <= FALLBACK_WARNING_SHARE * candidates:
        return None
    return (
        f"{fallback} of {candidates} candidates ({fallback / candidates:.1%}) were scored by the fallback, not by the official "
        "metric: their queries have fewer than ten annotated answers"
    )


class ScoreResponse(_Wire):
    """Results in the order of the request. `fingerprint` has the parts dataset, generation and metric in full."""

    fingerprint: dict[str, Any]
    results: list[ScoredQuery]
    stats: ScoreStats


class StreamStart(_Wire):
    """First line of a streamed answer."""

    fingerprint: dict[str, Any]


class StreamEnd(_Wire):
    """Last line of a streamed answer that is complete."""

    stats: ScoreStats


class StreamProblem(_Wire):
    """Last line of a streamed answer that could not be completed; `problem` is a problem document (RFC 9457)."""

    problem: dict[str, Any]


class ScorePlanResponse(_Wire):
    """What a request would take, without a VLM call. Images are not read, so that one which cannot be is found by scoring only.

    `pointers` are those of the request, repeats counted; `to_score` are the pieces of VLM work that no committed score spares,
    `committed` those that one does. `images`: distinct image files of all prompts, `images_to_score` of those still to be
    scored. `pointers_per_engine_s` is the rate measured since the scorer started, `estimated_s` what `to_score` takes at it;
    null where nothing was measured yet.
    """

    fingerprint: dict[str, Any]
    queries: int
    pointers: int
    committed: int
    to_score: int
    images: int
    images_to_score: int
    pointers_per_engine_s: float | None
    estimated_s: float | None
