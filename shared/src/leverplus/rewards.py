"""Reward of a scored pointer. Raw: whoever trains on it scales it, once.

h = vqa_correct (0, 1), s = vqa_acc_score, p = vqa_gt_prob, r = vqa_rel_score; wh, ws, wr the weights.

    hard_plus_soft                wh·h + ws·s
    hard_plus_soft_v2             ws·s + 2·wh·h
    separated                     h = 1: 2·wh + ws·s; h = 0: ws·s
    hard_only, soft_only          wh·h; ws·s
    hard01_plus_gtprob            wh·h + ws·p
    hard01_plus_gtprob_separated  h = 1: 2·wh + ws·p; h = 0: ws·p
    hard_plus_gtprob_plus_rel     wh·h + ws·p + wr·(1 − h)·r
    hybrid                        α·info_norm + (1 − α)·(h + s), info_norm = (x − min)/(max − min + 1e-8) in the group
    legacy                        α·quality + β·correctness

The names and formulas are those of the reference; hybrid is its plan's. A reward is None where something that
it needs is unknown; a term whose weight is 0 needs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from leverplus.errors import InvalidConfig, InvalidRlData
from leverplus.rl_data.records import Candidate

RewardMode = Literal[
    "hard_plus_soft",
    "hard_plus_soft_v2",
    "separated",
    "hard_only",
    "soft_only",
    "hard01_plus_gtprob",
    "hard01_plus_gtprob_separated",
    "hard_plus_gtprob_plus_rel",
    "hybrid",
    "legacy",
]
REWARD_MODES: tuple[RewardMode, ...] = get_args(RewardMode)

Scored = Candidate | Mapping[str, Any]
"""A candidate, or the object of its RL JSON fields."""

_Term = tuple[float, str, float | None]


@dataclass(frozen=True)
class RewardConfig:
    """Refuses impossible settings with InvalidConfig. `alpha` in hybrid lies above 0 and up to 1: 0 counts as not stated.

    legacy: `alpha` weighs quality, which is beam_score, or −logprob_score with `use_logprob`; `beta` weighs correctness, which is
    vqa_correct, or vqa_acc_score c where that is unknown, mapped by `correctness_mode`: "01" c, "pm1" 2c − 1.
    `info_field` names the candidate's field that holds the InfoScore (higher is better). Rewards are clipped to `reward_clip`.
    """

    mode: RewardMode = "hard_plus_soft"
    hard_weight: float = 1.0
    soft_weight: float = 1.0
    rel_weight: float = 0.1
    alpha: float = 0.0
    beta: float = 0.0
    correctness_mode: Literal["01", "pm1"] = "01"
    use_logprob: bool = False
    info_field: str = "info_score"
    reward_clip: tuple[float, float] = (-5.0, 5.0)

    def __post_init__(self) -> None:
        if self.mode not in REWARD_MODES:
            raise InvalidConfig(field="reward.mode", reason=f"{self.mode!r} is unknown; there are: {', '.join(REWARD_MODES)}")
        if self.correctness_mode not in ("01", "pm1"):
            raise InvalidConfig(field="reward.correctness_mode", reason=f"{self.correctness_mode!r}, expected '01' or 'pm1'")
        for name in ("hard_weight", "soft_weight", "rel_weight", "alpha", "beta"):
            _check_number(f"reward.{name}", getattr(self, name))
        if len(self.reward_clip) != 2:
            raise InvalidConfig(field="reward.reward_clip", reason=f"{self.reward_clip!r}, expected a lowest and a highest value")
        for bound in self.reward_clip:
            _check_number("reward.reward_clip", bound)
        low, high = self.reward_clip
        if low >= high:
            raise InvalidConfig(field="reward.reward_clip", reason=f"the lowest value {low} is not below the highest, {high}")
        if self.mode == "hybrid" and not 0 < self.alpha <= 1:
            reason = f"is {self.alpha}; hybrid needs a stated weight of the InfoScore, above 0 and at most 1"
            raise InvalidConfig(field="reward.alpha", reason=reason)
        if self.mode == "legacy" and self.alpha == 0 and self.beta == 0:
            raise InvalidConfig(field="reward.alpha and reward.beta", reason="both are 0, so every legacy reward would be 0")


def compute_reward(candidate: Scored, config: RewardConfig, group: Sequence[Scored] | None = None) -> float | None:
    """The reward of one candidate, clipped; None where it is not known.

    `group` holds the candidates of the same query and number of shots, this one among them; only hybrid needs it. Raises
    InvalidConfig if hybrid is asked for without a group, InvalidRlData if no candidate of the group has an InfoScore or if a
    value is no finite number.
    """
    terms = _terms(candidate, config)
    reward = _sum(_scaled(terms, config, group) if config.mode == "hybrid" else terms)
    if reward is None:
        return None
    low, high = config.reward_clip
    return min(max(reward, low), high)


def compute_rewards(candidates: Sequence[Scored], config: RewardConfig) -> list[float | None]:
    """The rewards of one query's candidates, in their order; those with equally many shots make a group.

    In hybrid a zero-shot candidate without InfoScore has reward None: a prompt without demonstrations gains nothing by them.
    """
    if config.mode != "hybrid":
        return [compute_reward(candidate, config) for candidate in candidates]
    groups: dict[int, list[Scored]] = {}
    for candidate in candidates:
        groups.setdefault(_shots(candidate), []).append(candidate)
    zero_shot_unknown = all(_value(candidate, config.info_field) is None for candidate in groups.get(0, []))
    return [
        None if shots == 0 and zero_shot_unknown else compute_reward(candidate, config, groups[shots])
        for candidate in candidates
        for shots in [_shots(candidate)]
    ]


def unknown_fields(candidate: Scored, config: RewardConfig) -> list[str]:
    """The fields that the candidate's reward needs and that are unknown, so that it has none."""
    return list(dict.fromkeys(name for weight, name, value in _terms(candidate, config) if weight != 0 and value is None))


def _terms(candidate: Scored, config: RewardConfig) -> list[_Term]:
    """(weight, field, value) of each term of the reward; their sum is the reward, but for hybrid's scaling."""
    mode, value = config.mode, lambda name: _value(candidate, name)
    if mode == "hybrid":
        rest = 1 - config.alpha
        weights = {config.info_field: config.alpha, "vqa_correct": rest, "vqa_acc_score": rest}
        return [(weight, name, value(name)) for name, weight in weights.items()]
    if mode == "legacy":
        return _legacy_terms(candidate, config)
    soft = "vqa_gt_prob" if "gtprob" in mode else "vqa_acc_score"
    # Two modes by different roads to the same numbers: a right answer counts twice.
    twice = mode in ("hard_plus_soft_v2", "separated", "hard01_plus_gtprob_separated")
    weights = {"vqa_correct": config.hard_weight * (2 if twice else 1), soft: config.soft_weight}
    if mode == "hard_only":
        del weights[soft]
    if mode == "soft_only":
        del weights["vqa_correct"]
    terms: list[_Term] = [(weight, name, value(name)) for name, weight in weights.items()]
    if mode == "hard_plus_gtprob_plus_rel" and config.rel_weight != 0:
        hard = value("vqa_correct")
        if hard is None:
            return [*terms, (config.rel_weight, "vqa_correct", None)]
        terms.append((config.rel_weight * (1 - hard), "vqa_rel_score", value("vqa_rel_score")))
    return terms


def _legacy_terms(candidate: Scored, config: RewardConfig) -> list[_Term]:
    quality_field = "logprob_score" if config.use_logprob else "beam_score"
    quality = _value(candidate, quality_field)
    if quality is not None and config.use_logprob:
        quality = -quality
    correctness = _value(candidate, "vqa_correct")
    if correctness is None:
        correctness = _value(candidate, "vqa_acc_score")
    if correctness is not None and config.correctness_mode == "pm1":
        correctness = 2 * correctness - 1
    return [(config.alpha, quality_field, quality), (config.beta, "vqa_correct", correctness)]


def _scaled(terms: list[_Term], config: RewardConfig, group: Sequence[Scored] | None) -> list[_Term]:
    """The terms of hybrid with the InfoScore, which is the first, as its place between the group's lowest and highest."""
    if group is None:
        raise InvalidConfig(field="reward.mode", reason="hybrid scales the InfoScore in its group, and no group was given")
    known = [value for one in group if (value := _value(one, config.info_field)) is not None]
    if not known:
        raise InvalidRlData(
            f"reward mode hybrid: none of the {len(group)} candidates of a group has {config.info_field}; "
            "score with InfoScore, or choose another mode",
            field=config.info_field,
        )
    (weight, name, info), *rest = terms
    scaled = None if info is None else (info - min(known)) / (max(known) - min(known) + 1e-8)
    return [(weight, name, scaled), *rest]


def _sum(terms: list[_Term]) -> float | None:
    total = 0.0
    for weight, _, value in terms:
        if weight == 0:
            continue
        if value is None:
            return None
        total += weight * value
    return total


def _shots(candidate: Scored) -> int:
    pointer = candidate.pointer if isinstance(candidate, Candidate) else candidate.get("pointer")
    if pointer is None:
        raise InvalidRlData("a candidate has no pointer, so its group is not known", field="pointer")
    return len(pointer)


def _value(candidate: Scored, name: str) -> float | None:
    if isinstance(candidate, Candidate):
        if not hasattr(candidate, name):
            raise InvalidConfig(field="reward.info_field", reason=f"candidates have no field {name!r}")
        value = getattr(candidate, name)
    else:
        value = candidate.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidRlData(f"candidate field {name} is {value!r}, expected a finite number or null", field=name)
    return value


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidConfig(field=name, reason=f"is {value!r}, expected a finite number")
