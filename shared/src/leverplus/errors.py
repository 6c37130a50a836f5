"""One tree of errors for the library, the services and the command line.

    LeverPlusError
    ├── InvalidInput            422  what was sent cannot be used; nothing was changed
    │   ├── InvalidDataset, InvalidRlData, InvalidPointer, InvalidEmbeddings, InvalidCheckpoint, InvalidConfig
    │   ├── InvalidSharedFile        what another host shared is not what its manifest says
    │   └── IdOutsidePool       also a KeyError
    ├── NotAuthenticated        401  no key, or one that is nobody's
    ├── NotAllowed              403  the key's role does not do
    ├── NotFound                404
    ├── Conflict                409
    │   └── FingerprintMismatch      two things made under different contracts
    ├── QueueFull               429  with Retry-After
    │   └── TooManyRequests         of one key
    ├── NotInstalled            501  an optional part of the installation that this needs is missing here
    ├── Unavailable             503  something that is needed is away: broker, database, weights, a service
    ├── DeadlineExceeded        504
    ├── Cancelled               499  the job or request was cancelled
    ├── GenerationFailed        500  the VLM failed on a prompt or a batch of them; nothing of these was stored
    └── TrainingDiverged        500  the loss or its gradient is no longer finite

Every class has a message template; an error is raised with the values that fill it, and those values travel in
the problem+json answer. A message names the thing, both values where two disagree, and the way out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


def shorten(text: str, length: int = 200) -> str:
    """`text` as it is, or its beginning and how much of it is left out: what was sent is not sent back in full."""
    return text if len(text) <= length else f"{text[:length]}… ({len(text) - length} more characters)"


class LeverPlusError(Exception):
    """Base of all errors that are a user's or an operator's to mend. `status` is the HTTP status it maps to."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    template: ClassVar[str] = "{detail}"

    def __init__(self, detail: str | None = None, /, **context: Any) -> None:
        self.context: dict[str, Any] = context
        self.detail = detail if detail is not None else self.template.format(**context)
        super().__init__(self.detail)

    def __str__(self) -> str:
        return self.detail

    @property
    def kind(self) -> str:
        """Stable name of the error, used as the problem's `type`."""
        return type(self).__name__


class InvalidInput(LeverPlusError):
    status = 422
    title = "Invalid input"


class InvalidDataset(InvalidInput):
    title = "Invalid dataset"
    template = "{path}: {reason}"


class InvalidRlData(InvalidInput):
    title = "Invalid RL data"
    template = "{file}: query {query}: field {field}: {reason}"


class InvalidPointer(InvalidInput):
    title = "Invalid pointer"
    template = "query {query_id}: pointer {pointer}: {reason}"


class InvalidEmbeddings(InvalidInput):
    title = "Invalid embeddings"
    template = "{path}: {reason}"


class InvalidCheckpoint(InvalidInput):
    title = "Invalid checkpoint"
    template = "{path}: {reason}"


class InvalidIndex(InvalidInput):
    title = "Invalid index"
    template = "{path}: {reason}"


class InvalidSharedFile(InvalidInput):
    title = "Invalid shared file"
    template = "{path}: {reason}"


class InvalidConfig(InvalidInput):
    title = "Invalid configuration"
    template = "{field}: {reason}"


class IdOutsidePool(InvalidInput, KeyError):
    title = "Item outside its pool"
    template = "{file}: query {query}: field {field}: item {item_id} is not among the {pool_size} ids of candidate_pool_ids"


class NotAuthenticated(LeverPlusError):
    status = 401
    title = "Not authenticated"
    template = "{reason}; send `Authorization: Bearer <key>`: clients of ours take key=, the command line LEVERPLUS_KEY"


class NotAllowed(LeverPlusError):
    status = 403
    title = "Not allowed"
    template = "key {key!r} has the role {role}, {asked} needs {needed}"


class NotFound(LeverPlusError):
    status = 404
    title = "Not found"
    template = "no {what} {name!r}; {hint}"


class Conflict(LeverPlusError):
    status = 409
    title = "Conflict"


class FingerprintMismatch(Conflict):
    """Raised with `subject`, and `differences`: field -> (expected, found)."""

    title = "Fingerprints differ"

    def __init__(self, *, subject: str, differences: Mapping[str, tuple[Any, Any]]) -> None:
        listed = "; ".join(f"{name}: expected {want!r}, found {have!r}" for name, (want, have) in differences.items())
        super().__init__(
            f"{subject} was made under another contract: {listed}",
            subject=subject,
            differences={name: list(pair) for name, pair in differences.items()},
        )


class QueueFull(LeverPlusError):
    """Raised with `retry_after_s`."""

    status = 429
    title = "Queue is full"
    template = "{what} holds {size} of {limit} places; try again in {retry_after_s} s"


class TooManyRequests(QueueFull):
    title = "Too many requests"
    template = "key {key!r} may make {rate:g} requests a second; try again in {retry_after_s} s"


class NotInstalled(LeverPlusError):
    status = 501
    title = "Not installed"
    template = "{what} needs {extra}, which is not installed here ({reason}); {hint}"


class Unavailable(LeverPlusError):
    status = 503
    title = "Unavailable"
    template = "{what} is away: {reason}; {hint}"


class DeadlineExceeded(LeverPlusError):
    status = 504
    title = "Deadline exceeded"
    template = "{what} was not done within {limit_s} s"


class Cancelled(LeverPlusError):
    status = 499
    title = "Cancelled"
    template = "{what} was cancelled"


class GenerationFailed(LeverPlusError):
    status = 500
    title = "Generation failed"
    template = "the VLM failed on a batch of {prompts} prompts: {reason}; nothing of it was stored"


class TrainingDiverged(LeverPlusError):
    title = "Training diverged"
    template = (
        "loss {loss}, gradient norm {grad_norm} in epoch {epoch}, step {step}; lower the learning rate (now {lr:g}), and look "
        "for extreme rewards and embeddings"
    )
