"""What a training run is told: the reference's names where it had one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from leverplus.errors import InvalidConfig, shorten
from leverplus.rewards import RewardConfig

GRPO_REFUSAL = "not available in this version; RCE only: leave grpo_epochs at 0"


class TrainConfig(BaseModel):
    """One run. An unknown field, or a value that cannot be meant, is refused when the config is read.

    The five GRPO settings are the reference's; they are read and kept, and take effect once grpo_epochs may be above 0.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # phases
    rce_epochs: int = Field(5, ge=1, le=1000)
    grpo_epochs: int = Field(0, le=1000)
    rce_lr: float = Field(1e-4, gt=0, le=1)
    grpo_lr: float = Field(1e-5, gt=0, le=1)
    batch_size: int = Field(32, ge=1, le=4096, description="queries per optimiser step")
    weight_decay: float = Field(0.01, ge=0, le=1)
    grad_clip: float = Field(1.0, gt=0, description="largest norm of the gradient over all parameters")

    # objective
    rce_use_raw_reward: bool = Field(False, description="softmax over raw rewards instead of z-scored ones")
    use_top1_only: bool = Field(False, description="imitate only the best candidate of a group")
    skip_fallback_reward: bool = Field(False, description="leave out candidates whose score is a fallback")
    temperature_start: float = Field(2.0, ge=0.01)
    temperature_end: float = Field(0.5, ge=0.01)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    kl_beta: float = Field(0.1, ge=0)
    clip_epsilon: float = Field(0.2, gt=0, lt=1)
    advantage_clip: float = Field(5.0, gt=0)
    freeze_backbone_in_grpo: bool = False
    reward: RewardConfig = Field(default_factory=RewardConfig)

    # selector
    hidden_dim: int = Field(256, ge=1, le=4096)
    num_layers: int = Field(1, ge=1, le=12)
    num_heads: int = Field(1, ge=1, le=64)
    dropout: float = Field(0.1, ge=0, lt=1)
    state_update: Literal["none", "gate"] = "none"

    # data
    keep_epoch: Annotated[
        Literal["expected_reward", "loss"],
        Field(description="by held-out queries; loss (RCE) where nearly all candidates are right and rewards tell nothing"),
    ] = "expected_reward"
    split: Literal["by_query", "by_image"] = "by_query"
    train_ratio: float = Field(0.8, gt=0, lt=1)

    seed: int = Field(0, ge=0, lt=2**32)
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def grpo_settings(self) -> list[str]:
        """Names of the settings of GRPO that differ from their defaults."""
        names = ("grpo_lr", "kl_beta", "clip_epsilon", "advantage_clip", "freeze_backbone_in_grpo")
        return [name for name in names if getattr(self, name) != type(self).model_fields[name].default]

    @field_validator("grpo_epochs")
    @classmethod
    def _rce_only(cls, value: int) -> int:
        if value > 0:
            raise ValueError(GRPO_REFUSAL)
        return value

    @model_validator(mode="after")
    def _heads_divide_width(self) -> TrainConfig:
        if self.hidden_dim % self.num_heads:
            raise ValueError(f"hidden_dim {self.hidden_dim} is not a multiple of num_heads {self.num_heads}")
        return self


def read_train_config(value: Mapping[str, Any]) -> TrainConfig:
    """The config in `value`, or InvalidConfig naming the first field that is wrong and what was found there."""
    try:
        return TrainConfig.model_validate(value)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "config"
        more = f" ({exc.error_count() - 1} more)" if exc.error_count() > 1 else ""
        reason = shorten(first["msg"].removeprefix("Value error, "), 500)
        # Our own messages name the value themselves.
        found = "" if first["type"] == "value_error" else f", found {shorten(repr(first['input']))}"
        raise InvalidConfig(field=shorten(field), reason=f"{reason}{found}{more}") from exc
