"""The selector's configuration, and the tensors that follow from it. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from leverplus.errors import InvalidConfig
from leverplus.ids import MAX_SHOTS

Architecture = Literal["pointer", "autoregressive"]
StateUpdate = Literal["none", "gate", "residual"]

POSITIONS = 1 + MAX_SHOTS
"""Tokens that an autoregressive selector reads at most: its beginning, the query, and every demonstration but the last."""

FEED_FORWARD = 4
"""Width inside a feed-forward part, in hidden_dim."""

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

    `architecture`: "pointer", a query that attends to its pool in `num_layers` rounds (0: it does not, a bi-encoder), or
    "autoregressive", a causal decoder of `num_layers` over the query and the demonstrations chosen so far.
    `query_mlp`: whether the query of a pointer passes a feed-forward part before it meets its pool, so that what counts in an
    image can depend on the question; candidates stay linear, and are compared at the same price.
    `dropout`: on query and candidates before their projections, and inside the decoder and feed-forward parts; `attn_dropout`:
    on attention weights; both only in training. `state_update`: whether and how a pointer's step sees what the steps before it
    chose; a decoder always does.
    `temperature` divides the cosines. Raises InvalidConfig.
    """

    d_model: int
    hidden_dim: int = 256
    num_heads: int = 1
    num_layers: int = 1
    dropout: float = 0.0
    attn_dropout: float = 0.0
    state_update: StateUpdate = "none"
    temperature: float = 0.1
    architecture: Architecture = "pointer"
    query_mlp: bool = False

    def __post_init__(self) -> None:
        def refuse(name: str, reason: str) -> InvalidConfig:
            return InvalidConfig(field=f"selector.{name}", reason=f"{getattr(self, name)!r}, {reason}")

        if self.architecture not in get_args(Architecture):
            raise refuse("architecture", f"is none of {', '.join(get_args(Architecture))}")
        autoregressive = self.architecture == "autoregressive"
        for name, least in (("d_model", 1), ("hidden_dim", 1), ("num_heads", 1), ("num_layers", int(autoregressive))):
            if type(getattr(self, name)) is not int or getattr(self, name) < least:
                raise refuse(name, f"must be a whole number of at least {least}")
        for name in ("dropout", "attn_dropout", "temperature"):
            if type(getattr(self, name)) not in (int, float):
                raise refuse(name, "must be a number")
        if type(self.query_mlp) is not bool:
            raise refuse("query_mlp", "must be true or false")
        if self.hidden_dim % self.num_heads:
            raise refuse("num_heads", f"must divide hidden_dim, which is {self.hidden_dim}")
        for name in ("dropout", "attn_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise refuse(name, "must be at least 0 and below 1")
        if self.state_update not in get_args(StateUpdate):
            raise refuse("state_update", f"is none of {', '.join(get_args(StateUpdate))}")
        if autoregressive and self.state_update != "none":
            raise refuse("state_update", "but an autoregressive selector has none of its own: its decoder reads what was chosen")
        if autoregressive and self.query_mlp:
            raise refuse("query_mlp", "but an autoregressive selector has feed-forward parts in its decoder")
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
    """Name and shape of every tensor of the state dict; a pointer's names are the reference's, a decoder layer's are torch's."""
    hidden = config.hidden_dim
    shapes: dict[str, tuple[int, ...]] = {}
    if config.d_model != hidden:
        shapes["input_proj.weight"] = (hidden, config.d_model)
    shapes |= _autoregressive_shapes(config) if config.architecture == "autoregressive" else _pointer_shapes(config)
    shapes["query_proj.weight"] = (hidden, hidden)
    shapes["cand_proj.weight"] = (hidden, hidden)
    return shapes


def _pointer_shapes(config: SelectorConfig) -> dict[str, tuple[int, ...]]:
    hidden = config.hidden_dim
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(config.num_layers):
        shapes |= _attention_shapes(f"cross_attn_layers.{layer}", hidden) | _norm_shapes(f"attn_norms.{layer}", hidden)
    if config.query_mlp:
        shapes |= _norm_shapes("query_norm", hidden) | _feed_forward_shapes("query_mlp", hidden, hidden)
    if config.state_update == "gate":
        shapes["query_update_gate.weight"] = (hidden, 2 * hidden)
        shapes["query_update_gate.bias"] = (hidden,)
    if config.state_update == "residual":
        shapes |= _feed_forward_shapes("state_mlp", 3 * hidden, hidden)
    return shapes


def _autoregressive_shapes(config: SelectorConfig) -> dict[str, tuple[int, ...]]:
    hidden, inner = config.hidden_dim, FEED_FORWARD * config.hidden_dim
    shapes: dict[str, tuple[int, ...]] = {"beginning": (hidden,), "position_embeddings.weight": (POSITIONS, hidden)}
    for layer in range(config.num_layers):
        name = f"decoder_layers.{layer}"
        shapes |= _attention_shapes(f"{name}.self_attn", hidden)
        shapes |= {f"{name}.linear1.weight": (inner, hidden), f"{name}.linear1.bias": (inner,)}
        shapes |= {f"{name}.linear2.weight": (hidden, inner), f"{name}.linear2.bias": (hidden,)}
        shapes |= _norm_shapes(f"{name}.norm1", hidden) | _norm_shapes(f"{name}.norm2", hidden)
    return shapes | _norm_shapes("final_norm", hidden)


def _attention_shapes(name: str, hidden: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.in_proj_weight": (3 * hidden, hidden),
        f"{name}.in_proj_bias": (3 * hidden,),
        f"{name}.out_proj.weight": (hidden, hidden),
        f"{name}.out_proj.bias": (hidden,),
    }


def _feed_forward_shapes(name: str, given: int, hidden: int) -> dict[str, tuple[int, ...]]:
    inner = FEED_FORWARD * hidden
    return {
        f"{name}.up.weight": (inner, given),
        f"{name}.up.bias": (inner,),
        f"{name}.down.weight": (hidden, inner),
        f"{name}.down.bias": (hidden,),
    }


def _norm_shapes(name: str, hidden: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (hidden,), f"{name}.bias": (hidden,)}
