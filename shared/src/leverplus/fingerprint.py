"""What a result was made from, in four parts that can be compared field by field.

`dataset`: the data. `pool`: embeddings and pool policy. `generation`: the VLM, its weights, the prompt and the
generation arguments. `metric`: answer post-processing and flavour. Scores, RL files, checkpoints and deployments carry
the parts that apply to them; whatever mixes two of them calls `require_same` first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import orjson

from leverplus.errors import FingerprintMismatch, InvalidInput, shorten

PartName = Literal["dataset", "pool", "generation", "metric"]
PART_NAMES: tuple[PartName, ...] = ("dataset", "pool", "generation", "metric")
Part = Mapping[str, Any]


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY)


def digest(value: Any) -> str:
    """Hex sha256 over the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


@dataclass(frozen=True)
class Fingerprint:
    """The four parts; None where one does not apply or is unknown (an old file that did not say)."""

    dataset: Part | None = None
    pool: Part | None = None
    generation: Part | None = None
    metric: Part | None = None

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | None) -> Fingerprint:
        """Inverse of `to_json`; InvalidInput for anything but an object of objects (None: a part, or all, is unknown)."""
        parts: Any = {} if value is None else value
        if not isinstance(parts, Mapping):
            raise InvalidInput(f"fingerprint is {shorten(repr(parts))}, expected an object")
        stated = {name: cast("Mapping[str, Any]", parts).get(name) for name in PART_NAMES}
        for name, part in stated.items():
            if not isinstance(part, Mapping | None):
                raise InvalidInput(f"fingerprint.{name} is {shorten(repr(part))}, expected an object")
        return cls(**stated)

    def to_json(self) -> dict[str, Any]:
        return {name: dict(part) for name in PART_NAMES if (part := self.part(name)) is not None}

    def part(self, name: PartName) -> Part | None:
        return getattr(self, name)

    def digests(self) -> dict[str, str]:
        """Part name -> hex sha256, for the parts that are known."""
        return {name: digest(part) for name, part in self.to_json().items()}

    def require_same(self, other: Fingerprint, *, subject: str, parts: Sequence[PartName] = PART_NAMES) -> None:
        """Raises FingerprintMismatch naming every field of `parts` in which `other` (the subject's) departs from self.

        A part that self does not know is not compared; one that self knows and `other` does not is a difference.
        """
        differences: dict[str, tuple[Any, Any]] = {}
        for name in parts:
            want, have = self.part(name), other.part(name)
            if want is None:
                continue
            if have is None:
                differences[name] = (digest(want)[:12], None)
                continue
            differences.update(_compare(name, want, have))
        if differences:
            raise FingerprintMismatch(subject=subject, differences=differences)


def _compare(prefix: str, want: Any, have: Any) -> dict[str, tuple[Any, Any]]:
    if isinstance(want, Mapping) and isinstance(have, Mapping):
        found: dict[str, tuple[Any, Any]] = {}
        for key in sorted({*want, *have}):
            found.update(_compare(f"{prefix}.{key}", want.get(key), have.get(key)))
        return found
    return {} if canonical_json(want) == canonical_json(have) else {prefix: (want, have)}
