"""The selector's configuration, and the tensors that follow from it. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from leverplus.errors import InvalidConfig

StateUpdate = Literal["none", "gate"]

CHOSEN_LOGIT = -100.0
"""Logit of a candidate that is chosen already, as in the reference: its softmax weight is below float32's smallest step."""

MIN_TEMPERATURE = 0.02
"""Below it a true logit, a cosine over the temperature, could come near CHOSEN_LOGIT."""

TIE_TOLERANCE = 1e-5
"""Logits or log-probabilities closer than this are equal, and the lower position wins: the sums of torch and of numpy
differ in their last bits, also for two equal rows at different places."""


@dataclass(frozen=True)
class SelectorConfig:
    """`d_model`: width of the embeddings. `hidden_dim`: width inside; where it equals d_model there is no input projection.

    `dropout`: on query and candidates before their projections; `attn_dropout`: on attention weights; both only in
    training. `state_update`: whether a step sees what the steps before it chose. `temperature` divides the cosines.
    Raises InvalidConfig.
    """

    d_model: int
    hidden_dim: int = 256
    num_heads: int = 1
    num_layers: int = 1
    dropout: float = 0.0
    attn_dropout: float = 0.0
    state_update: StateUpdate = "none"
    temperature: float = 0.1

    def __post_init__(self) -> None:
        def refuse(name: str, reason: str) -> InvalidConfig:
            return InvalidConfig(field=f"selector.{name}", reason=f"{getattr(self, name)!r}, {reason}")

        for name in ("d_model", "hidden_dim", "num_heads", "num_layers"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise refuse(name, "must be a whole number of at least 1")
        for name in ("dropout", "attn_dropout", "temperature"):
            if type(getattr(self, name)) not in (int, float):
                raise refuse(name, "must be a number")
        if self.hidden_dim % self.num_heads:
            raise refuse("num_heads", f"must divide hidden_dim, which is {self.hidden_dim}")
        for name in ("dropout", "attn_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise refuse(name, "must be at least 0 and below 1")
        if self.state_update not in get_args(StateUpdate):
            raise refuse("state_update", f"is none of {', '.join(get_args(StateUpdate))}")
        if not self.temperature >= MIN_TEMPERATURE:
            raise refuse("temperature", f"must be at least {MIN_TEMPERATURE}")

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SelectorConfig:
        """Inverse of `to_json`; InvalidConfig for an unknown field or without d_model."""
        names = [field.name for field in fields(cls)]
        if unknown := sorted(set(value) - set(names)):
            raise InvalidConfig(field="selector", reason=f"unknown field {unknown[0]!r}; there are {', '.join(names)}")
        if "d_model" not in value:
            raise InvalidConfig(field="selector.d_model", reason="missing")
        return cls(**value)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def tensor_shapes(config: SelectorConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the state dict; the names are the reference's."""
    hidden = config.hidden_dim
    shapes: dict[str, tuple[int, ...]] = {}
    if config.d_model != hidden:
        shapes["input_proj.weight"] = (hidden, config.d_model)
    for layer in range(config.num_layers):
        shapes[f"cross_attn_layers.{layer}.in_proj_weight"] = (3 * hidden, hidden)
        shapes[f"cross_attn_layers.{layer}.in_proj_bias"] = (3 * hidden,)
        shapes[f"cross_attn_layers.{layer}.out_proj.weight"] = (hidden, hidden)
        shapes[f"cross_attn_layers.{layer}.out_proj.bias"] = (hidden,)
        shapes[f"attn_norms.{layer}.weight"] = (hidden,)
        shapes[f"attn_norms.{layer}.bias"] = (hidden,)
    shapes["query_proj.weight"] = (hidden, hidden)
    shapes["cand_proj.weight"] = (hidden, hidden)
    if config.state_update == "gate":
        shapes["query_update_gate.weight"] = (hidden, 2 * hidden)
        shapes["query_update_gate.bias"] = (hidden,)
    return shapes
