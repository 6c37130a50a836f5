"""What a training run is told: the reference's names where it had one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from leverplus.errors import InvalidConfig, shorten
from leverplus.ids import MAX_SHOTS
from leverplus.rewards import RewardConfig
from leverplus.selector.config import Architecture, SelectorConfig, StateUpdate

Trainable = Literal["head", "attention", "all"]

_OF_GRPO = ("grpo_lr", "grpo_form", "grpo_advantage", "grpo_trainable", "grpo_curriculum", "kl_beta_adaptive", "clip_epsilon",
            "advantage_clip", "freeze_backbone_in_grpo")  # fmt: skip
_OF_RCE = ("rce_use_raw_reward", "temperature_start", "temperature_end")
_OF_FIRST = ("objective", "rce_lr", "use_top1_only", *_OF_RCE)
_OF_ANSWERS = ("answer_lr",)
_OF_SUPERVISED = ("supervised_lr",)

_SIZE = {"autoregressive": {"num_layers": 2, "num_heads": 4}}
"""What an architecture has instead of the defaults where the config does not say."""


class TrainConfig(BaseModel):
    """One run. An unknown field, or a value or combination that cannot be meant, is refused when the config is read.

    In this order, each from the best epoch of the one before: the dataset's own answers for `answer_epochs`, imitation of beams
    for `supervised_epochs`, `objective` for `rce_epochs` at `rce_lr`, GRPO for `grpo_epochs`. Each may be 0, but not all of the
    first three.
    None: what `grpo_form` makes of it, see the properties below.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # phases
    answer_epochs: int = Field(
        0, ge=0, le=1000, description="cross-entropy on the items whose answers tell the query's own; needs no scores"
    )
    supervised_epochs: int = Field(
        0, ge=0, le=1000, description="cross-entropy on the best by reward of a group's beams (gen_method beam)"
    )
    rce_epochs: int = Field(5, ge=0, le=1000)
    grpo_epochs: int = Field(0, le=1000)
    answer_lr: float = Field(1e-3, gt=0, le=1)
    supervised_lr: float = Field(1e-4, gt=0, le=1)
    rce_lr: float = Field(1e-4, gt=0, le=1)
    grpo_lr: float = Field(1e-5, gt=0, le=1)
    batch_size: int = Field(32, ge=1, le=4096, description="queries per optimiser step")
    lr_schedule: Literal["constant", "cosine"] = Field(
        "constant", description="cosine: up over the first tenth of a phase's steps, then down to 0"
    )
    weight_decay: float = Field(0.01, ge=0, le=1)
    grad_clip: float = Field(1.0, gt=0, description="largest norm of the gradient over all parameters")

    # what the phases train on
    reward: RewardConfig = Field(default_factory=RewardConfig)
    skip_fallback_reward: bool = Field(False, description="leave out candidates whose score is a fallback")
    shot_weights: dict[Annotated[int, Field(ge=1, le=MAX_SHOTS)], Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict[int, float],
        description="the loss is the sum over numbers of shots of weight times that number's mean loss; 1 where not named",
    )
    drop_flat_groups: bool = Field(False, description="weight 0 for groups whose rewards are all equal")
    group_weight: Literal["equal", "best_over_mean"] = Field(
        "equal", description="best_over_mean: max r - mean r, which is 0 for equal rewards"
    )

    # the phase of rce_epochs
    objective: Literal["rce", "expected_reward"] = "rce"
    rce_use_raw_reward: bool = Field(False, description="softmax over raw rewards instead of z-scored ones")
    use_top1_only: bool = Field(False, description="imitate only the best candidate of a group")
    temperature_start: float = Field(2.0, ge=0.01)
    temperature_end: float = Field(0.5, ge=0.01)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    kl_beta: float = Field(0.1, ge=0, description="weight of the KL to the policy that the phase began with")

    # GRPO
    grpo_form: Literal["safe", "reference"] = "safe"
    grpo_advantage: Literal["zscore", "leave_one_out"] = "zscore"
    grpo_trainable: Trainable | None = Field(
        None, description="which modules GRPO trains; null: head, or all in the reference's form"
    )
    freeze_backbone_in_grpo: bool = Field(False, description="the same as grpo_trainable head, in either form")
    grpo_curriculum: Literal["none", "spread"] = Field(
        "none", description="spread: epoch e of E takes the e/E of the queries whose rewards differ most"
    )
    kl_beta_adaptive: bool | None = Field(None, description="null: fixed, or adapted after every step in the reference's form")
    clip_epsilon: float = Field(0.2, gt=0, lt=1)
    advantage_clip: float = Field(5.0, gt=0)

    # selector
    architecture: Architecture = Field(
        "pointer", description="autoregressive: a causal decoder, num_layers 2 and num_heads 4 where not stated"
    )
    hidden_dim: int = Field(256, ge=1, le=4096)
    num_layers: int = Field(1, ge=0, le=12, description="0: a bi-encoder, without attention to the pool")
    num_heads: int = Field(1, ge=1, le=64)
    dropout: float = Field(0.1, ge=0, lt=1)
    state_update: StateUpdate = "none"
    query_mlp: bool = Field(False, description="the query passes a feed-forward part: what counts in an image may depend on it")

    # data
    keep_epoch: Annotated[
        Literal["expected_reward", "loss"],
        Field(description="by held-out queries; loss (RCE) where nearly all candidates are right and rewards tell nothing"),
    ] = "expected_reward"
    split: Literal["by_query", "by_image"] = "by_query"
    train_ratio: float = Field(0.8, gt=0, lt=1)

    seed: int = Field(0, ge=0, lt=2**32)
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @property
    def trainable_in_grpo(self) -> Trainable:
        if self.grpo_trainable is not None:
            return self.grpo_trainable
        return "all" if self.grpo_form == "reference" and not self.freeze_backbone_in_grpo else "head"

    @property
    def adapts_kl_beta(self) -> bool:
        return self.grpo_form == "reference" if self.kl_beta_adaptive is None else self.kl_beta_adaptive

    def selector(self, d_model: int) -> SelectorConfig:
        """The selector's configuration for embeddings of that width. Raises InvalidConfig."""
        return SelectorConfig(
            d_model=d_model,
            hidden_dim=self.hidden_dim,
            num_heads=self.num_heads,
            num_layers=self.num_layers,
            dropout=self.dropout,
            state_update=self.state_update,
            query_mlp=self.query_mlp,
            architecture=self.architecture,
        )

    def settings_without_effect(self) -> list[str]:
        """Names of the settings that differ from their defaults and belong to something that is not run."""
        names: list[str] = []
        if self.answer_epochs == 0:
            names += _OF_ANSWERS
        if self.supervised_epochs == 0:
            names += _OF_SUPERVISED
        if self.rce_epochs == 0:
            names += _OF_FIRST
        elif self.objective != "rce":
            names += _OF_RCE
        if self.grpo_epochs <= 0:
            compares = self.rce_epochs > 0 and self.objective == "expected_reward"
            names += _OF_GRPO if compares else ("kl_beta", *_OF_GRPO)
        fields = type(self).model_fields
        return [name for name in fields if name in names and getattr(self, name) != fields[name].default]

    @model_validator(mode="before")
    @classmethod
    def _size_of_its_architecture(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            stated = cast(Mapping[str, Any], value)
            return {**_SIZE.get(str(stated.get("architecture")), {}), **stated}
        return value

    @model_validator(mode="after")
    def _selector_is_one(self) -> TrainConfig:
        if self.hidden_dim % self.num_heads:
            raise ValueError(f"hidden_dim {self.hidden_dim} is not a multiple of num_heads {self.num_heads}")
        try:
            self.selector(d_model=1)
        except InvalidConfig as exc:
            raise ValueError(str(exc)) from exc
        if self.grpo_epochs > 0 and self.trainable_in_grpo == "attention" and self.num_layers == 0:
            raise ValueError("grpo_trainable 'attention' leaves nothing to train, because num_layers is 0; use head or all")
        return self

    @model_validator(mode="after")
    def _something_comes_before_grpo(self) -> TrainConfig:
        if self.answer_epochs == self.supervised_epochs == self.rce_epochs == 0:
            raise ValueError(
                f"answer_epochs, supervised_epochs and rce_epochs are 0 (grpo_epochs {self.grpo_epochs}): nothing is trained; "
                "give one of them"
            )
        return self

    @model_validator(mode="after")
    def _objective_takes_its_settings(self) -> TrainConfig:
        if self.objective == "expected_reward":
            for name in ("use_top1_only", "label_smoothing"):
                if value := getattr(self, name):
                    raise ValueError(f"{name} {value!r} is of RCE, but objective is {self.objective!r}; leave one of them out")
        if self.freeze_backbone_in_grpo and self.grpo_trainable not in (None, "head"):
            raise ValueError(
                f"freeze_backbone_in_grpo {self.freeze_backbone_in_grpo!r} trains the head alone, but grpo_trainable is "
                f"{self.grpo_trainable!r}; leave one of them out"
            )
        return self


_DEEPEST = 16
"""No config nests so deep: what does is refused before anything walks through it."""


def require_json(field: str, value: Any, depth: int = 0) -> None:
    """That `value` can be stored and shown as JSON; InvalidConfig for what nests deeper than 16, an integer of more than 64 bits,
    and text that is no Unicode."""
    if isinstance(value, Mapping | list):
        if depth == _DEEPEST:
            raise InvalidConfig(
                field=shorten(field), reason=f"nests deeper than {_DEEPEST}, which no setting does; write it flat"
            )
        members = cast("Mapping[Any, Any] | list[Any]", value)
        for member in members if isinstance(members, list) else [*members.keys(), *members.values()]:
            require_json(field, member, depth + 1)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        reason = f"an integer of {value.bit_length()} bits, at most 64 can be stored; write a smaller one"
        raise InvalidConfig(field=shorten(field), reason=reason)
    elif isinstance(value, str) and (half := next((mark for mark in value if "\ud800" <= mark <= "\udfff"), None)):
        reason = f"holds {half!r}, half of a surrogate pair, which is no text; leave it out"
        raise InvalidConfig(field=shorten(ascii(field)), reason=reason)


def read_train_config(value: Mapping[str, Any]) -> TrainConfig:
    """The config in `value`, or InvalidConfig naming the first field that is wrong and what was found there."""
    for name, member in value.items():
        require_json(name, member)
    try:
        config = TrainConfig.model_validate(value)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "config"
        more = f" ({exc.error_count() - 1} more)" if exc.error_count() > 1 else ""
        reason = shorten(first["msg"].removeprefix("Value error, "), 500)
        # Our own messages name the value themselves.
        found = "" if first["type"] == "value_error" else f", found {shorten(repr(first['input']))}"
        raise InvalidConfig(field=shorten(field), reason=f"{reason}{found}{more}") from exc
    _require_no_flag_as_number(value, config, "")
    return config


def _require_no_flag_as_number(stated: Mapping[str, Any], config: Any, table: str) -> None:
    """pydantic takes true for 1: `rce_epochs = true` would be one epoch."""
    for name, value in stated.items():
        read = getattr(config, name, None)
        if isinstance(value, bool) and not isinstance(read, bool):
            raise InvalidConfig(field=f"{table}{name}", reason=f"is {str(value).lower()}, expected a number; write {int(value)}")
        if isinstance(value, Mapping):
            _require_no_flag_as_number(cast("Mapping[str, Any]", value), read, f"{table}{name}.")
