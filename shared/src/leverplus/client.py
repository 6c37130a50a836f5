"""Typed clients of the three services. A problem+json answer is raised as the LeverPlusError that it names."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import httpx

from leverplus import errors
from leverplus.data_root import check_name
from leverplus.origin import passed_on
from leverplus.scoring import (
    NDJSON,
    ScoredQuery,
    ScorePlanResponse,
    ScoreRequest,
    ScoreResponse,
    ScoreStats,
    StreamEnd,
    StreamProblem,
    StreamStart,
)
from leverplus.tracing import span

CONNECT_LIMIT_S = 5.0
DIRECT = {"all://127.0.0.1": None, "all://localhost": None, "all://[::1]": None}
"""A machine's HTTP_PROXY must not stand between it and itself."""

_TERMINAL = {"succeeded", "failed", "cancelled"}
_KINDS: dict[str, type[errors.LeverPlusError]] = {
    kind.__name__: kind
    for kind in (
        errors.InvalidInput,
        errors.GenerationFailed,
        errors.InvalidDataset,
        errors.InvalidRlData,
        errors.InvalidPointer,
        errors.InvalidEmbeddings,
        errors.InvalidCheckpoint,
        errors.InvalidIndex,
        errors.InvalidConfig,
        errors.IdOutsidePool,
        errors.NotAuthenticated,
        errors.NotAllowed,
        errors.NotFound,
        errors.Conflict,
        errors.QueueFull,
        errors.TooManyRequests,
        errors.NotInstalled,
        errors.Unavailable,
        errors.DeadlineExceeded,
        errors.Cancelled,
    )
}
"""Errors that a service may name in a problem's `type`; FingerprintMismatch arrives as its parent, Conflict."""


def raise_problem(response: httpx.Response) -> None:
    """Raises what an answer of 400 or above says; returns for any other."""
    if response.status_code < 400:
        return
    try:
        document: dict[str, Any] = response.json()
    except ValueError:
        document = {"detail": response.text[:500] or response.reason_phrase}
    by_status: dict[int, type[errors.LeverPlusError]] = {
        401: errors.NotAuthenticated,
        403: errors.NotAllowed,
        404: errors.NotFound,
        409: errors.Conflict,
        422: errors.InvalidInput,
        429: errors.QueueFull,
    }
    by_status |= {503: errors.Unavailable, 504: errors.DeadlineExceeded}
    kind = _KINDS.get(str(document.get("type"))) or by_status.get(response.status_code, errors.LeverPlusError)
    context = _context(document)
    if "Retry-After" in response.headers:
        context["retry_after_s"] = response.headers["Retry-After"]
    asked, said = f"{response.request.method} {response.request.url.path}: ", str(document.get("detail"))
    detail = said if said.startswith(asked) else asked + said
    if response.status_code == 404 and str(document.get("type")) not in _KINDS:
        detail += f"; {response.request.url.host}:{response.request.url.port} has no such route: is another service there?"
    raise kind(detail, **context)


def _context(document: Mapping[str, Any]) -> dict[str, Any]:
    context: dict[str, Any] = document.get("context") or {}
    return {name: value for name, value in context.items() if name != "detail"}


def _named(document: Mapping[str, Any]) -> errors.LeverPlusError:
    """The error that a problem document inside an answer names."""
    kind = _KINDS.get(str(document.get("type")), errors.LeverPlusError)
    return kind(str(document.get("detail")), **_context(document))


def _no_json(value: Any, name: str) -> str | None:
    """Where in a body something stands that JSON has no form for, such as TOML's dates and nan; None without such."""
    if isinstance(value, Mapping | list | tuple):
        members = cast("Mapping[str, Any] | Sequence[Any]", value)
        named = members.items() if isinstance(members, Mapping) else enumerate(members)
        found = (_no_json(member, f"{name}.{place}".removeprefix(".")) for place, member in named)
        return next(filter(None, found), None)
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError):
        return f"{name} is {value!r}, which JSON cannot hold; write a finite number, text, a list or a table"
    return None


def checked_url(service: str, base_url: str) -> str:
    """Without a trailing slash; InvalidConfig if that is no http URL."""
    stripped = base_url.rstrip("/")
    example = f"{base_url!r} is no URL of a service; write it like http://127.0.0.1:8001"
    try:
        address = httpx.URL(stripped)
    except httpx.InvalidURL as exc:
        raise errors.InvalidConfig(field=service, reason=example) from exc
    if address.scheme not in ("http", "https") or not address.host:
        raise errors.InvalidConfig(field=service, reason=example)
    return stripped


def key_headers(key: str | None) -> dict[str, str]:
    """InvalidConfig, which does not repeat it, for a key that no header can hold."""
    if key is None:
        return {}
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise errors.InvalidConfig(field="key", reason="it is no key as `leverplus keys new` prints them; is it cut or quoted?")
    return {"Authorization": f"Bearer {key}"}


def say_for_whom(request: httpx.Request) -> None:
    """A service that asks another passes on the ids of the request that it answers, and of the job that it does."""
    for name, value in passed_on().items():
        request.headers.setdefault(name, value)


@contextmanager
def transport_errors(service: str, base_url: str, asked: str, limit_s: float | None) -> Generator[None]:
    """httpx's errors of the connection as LeverPlusErrors."""
    try:
        yield
    except httpx.TimeoutException as exc:
        raise errors.DeadlineExceeded(what=f"{service} {asked}", limit_s=limit_s) from exc
    except httpx.TransportError as exc:
        reason = f"{type(exc).__name__} at {base_url}"
        raise errors.Unavailable(what=service, reason=reason, hint="is it running? `make up` starts all services") from exc


class ServiceClient:
    """One service at `base_url`, InvalidConfig if that is no http URL. `key`: what it is asked with, where it has keys.

    Connection failures are raised as Unavailable.
    """

    service = "service"

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None = None,
        timeout_s: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.base_url = checked_url(self.service, base_url)
        timeout = httpx.Timeout(timeout_s, connect=CONNECT_LIMIT_S)
        headers = key_headers(key)
        self._http = httpx.Client(
            base_url=self.base_url,
            headers=headers,
            timeout=timeout,
            transport=transport,
            mounts=DIRECT,
            event_hooks={"request": [say_for_whom]},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """A request whose failure is a LeverPlusError."""
        try:
            request = self._http.build_request(method, path, **arguments)
        except (TypeError, ValueError) as exc:
            reason = _no_json(arguments.get("json"), "") or str(exc)
            raise errors.InvalidInput(f"{method} {path}: {reason}") from exc
        with self._transport_errors(f"{method} {path}"), span(f"{method} {self.service}", "client", url__path=path) as traced:
            response = self._http.send(request)
            traced.set(http__response__status_code=response.status_code)
        raise_problem(response)
        return response

    def _transport_errors(self, asked: str) -> AbstractContextManager[None]:
        return transport_errors(self.service, self.base_url, asked, self._http.timeout.read)

    def name(self) -> str | None:
        """What the service calls itself, which takes no key; None where something else answers."""
        try:
            return str(self.request("GET", "/health/live").json()["service"])
        except (errors.NotFound, ValueError, KeyError, TypeError):
            return None

    def ready(self) -> None:
        """Returns when the service is ready, raises what it says otherwise."""
        self.request("GET", "/health/ready")


class ScorerClient(ServiceClient):
    service = "vqa_scorer"

    def score(self, request: ScoreRequest) -> ScoreResponse:
        response = self.request("POST", "/score", json=request.model_dump())
        return ScoreResponse.model_validate_json(response.content)

    def score_plan(self, request: ScoreRequest) -> ScorePlanResponse:
        """What `score` would take, without a VLM call."""
        response = self.request("POST", "/score/plan", json=request.model_dump())
        return ScorePlanResponse.model_validate_json(response.content)

    def score_stream(self, request: ScoreRequest) -> ScoreStream:
        """The scores as they become ready, also of a request that is larger than the scorer's queue. Raises as `score` does."""
        headers = {"Accept": NDJSON}
        with self._transport_errors("POST /score"), span("POST vqa_scorer", "client", url__path="/score"):
            asked = self._http.build_request("POST", "/score", json=request.model_dump(), headers=headers)
            response = self._http.send(asked, stream=True)
        if response.status_code >= 400:
            with self._transport_errors("POST /score"), closing(response):
                response.read()
            raise_problem(response)
        return ScoreStream(response, self._transport_errors)

    def stats(self) -> dict[str, Any]:
        return self.request("GET", "/stats").json()


class ScoreStream:
    """Iterates over the scored queries in the order of the request; `fingerprint` is there from the start, `stats` at the end.

    A problem that ends the stream is raised as the error that it names; a stream that breaks off as Unavailable. Whoever does not
    read to the end closes it, as a `with` block does: the scorer then stops working on it.
    """

    def __init__(self, response: httpx.Response, transport_errors: Callable[[str], AbstractContextManager[None]]) -> None:
        self.stats: ScoreStats | None = None
        self._response = response
        self._transport_errors = transport_errors
        self._lines = response.iter_lines()
        self.fingerprint = StreamStart.model_validate_json(self._read()).fingerprint

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ScoredQuery:
        if self.stats is not None:
            raise StopIteration
        line = self._read()
        if line.startswith('{"query_id"'):
            return ScoredQuery.model_validate_json(line)
        self.close()
        if line.startswith('{"stats"'):
            self.stats = StreamEnd.model_validate_json(line).stats
            raise StopIteration
        raise _named(StreamProblem.model_validate_json(line).problem)

    def close(self) -> None:
        self._response.close()

    def _read(self) -> str:
        with self._transport_errors("POST /score"):
            line = next(self._lines, None)
        if line is None:
            self.close()
            raise errors.Unavailable(what="vqa_scorer", reason="its stream broke off", hint="ask again: what it scored is kept")
        return line


class TrainerClient(ServiceClient):
    service = "pointer_trainer"

    def _submit(self, path: str, body: Mapping[str, Any], idempotency_key: str | None) -> str:
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self.request("POST", path, json=dict(body), headers=headers).json()["job_id"]

    def embed(self, dataset: str, *, idempotency_key: str | None = None) -> str:
        """Starts a job; returns its id."""
        return self._submit("/embeddings", {"dataset": dataset}, idempotency_key)

    def datasets(self) -> list[dict[str, Any]]:
        return self.request("GET", "/datasets").json()["datasets"]

    def generate(self, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> str:
        return self._submit("/rl-data/generate", body, idempotency_key)

    def train(self, rl_data: Sequence[str], config: Mapping[str, Any], *, idempotency_key: str | None = None) -> str:
        return self._submit("/train", {"rl_data": list(rl_data), "config": dict(config)}, idempotency_key)

    def sweep(self, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> str:
        return self._submit("/sweep", body, idempotency_key)

    def evaluate(self, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> str:
        return self._submit("/evaluate", body, idempotency_key)

    def headroom(self, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> str:
        return self._submit("/headroom", body, idempotency_key)

    def estimate(self, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> str:
        return self._submit("/estimate", body, idempotency_key)

    def upload_rl_data(self, path: Path, dataset: str, *, info_score: str | None = None) -> dict[str, Any]:
        """`info_score`: of a legacy InfoScore file, which scores are better, `higher` or `lower`."""
        with path.open("rb") as stream:
            headers = {"Content-Type": "application/octet-stream"}
            named = {"dataset": dataset, "name": path.name} | ({"info_score": info_score} if info_score else {})
            return self.request("POST", "/rl-data", params=named, content=stream, headers=headers).json()

    def job(self, job_id: str) -> dict[str, Any]:
        return self.request("GET", f"/jobs/{check_name(job_id, what='job')}").json()

    def jobs(self) -> list[dict[str, Any]]:
        return self.request("GET", "/jobs").json()["jobs"]

    def cancel(self, job_id: str) -> dict[str, Any]:
        return self.request("DELETE", f"/jobs/{check_name(job_id, what='job')}").json()

    def resume(self, job_id: str) -> dict[str, Any]:
        return self.request("POST", f"/jobs/{check_name(job_id, what='job')}/resume").json()

    def wait(
        self,
        job_id: str,
        *,
        limit_s: float,
        on_progress: Callable[[dict[str, Any]], None] | None = None,
        poll_s: float = 0.3,
    ) -> dict[str, Any]:
        """The result of a job that succeeded; raises what made it fail, Cancelled, or DeadlineExceeded after `limit_s`.

        `on_progress` is called with every poll, with an empty mapping while the job waits, and may raise.
        """
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            job = self.job(job_id)
            if on_progress is not None:
                on_progress(job.get("progress") or {})
            if job["status"] in _TERMINAL:
                return _result(job)
            time.sleep(poll_s)
        raise errors.DeadlineExceeded(what=f"job {job_id}", limit_s=limit_s)

    def disk(self, *, retention_days: float | None = None) -> dict[str, Any]:
        """What each kind of data takes, and what that retention, or the service's own, would free."""
        params = {} if retention_days is None else {"retention_days": retention_days}
        return self.request("GET", "/disk", params=params).json()

    def checkpoints(self) -> dict[str, Any]:
        """`checkpoints` as they describe themselves, and `broken`."""
        return self.request("GET", "/checkpoints").json()

    def deployments(self) -> list[dict[str, Any]]:
        return self.request("GET", "/deployments").json()["deployments"]

    def delete_checkpoint(self, checkpoint_id: str, *, dry_run: bool = False) -> dict[str, Any]:
        path = f"/checkpoints/{check_name(checkpoint_id, what='checkpoint')}"
        return self.request("DELETE", path, params={"dry_run": dry_run}).json()

    def prune_checkpoints(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return self.request("POST", "/checkpoints/prune", json=dict(body)).json()

    def delete_run(self, job_id: str, *, dry_run: bool = False) -> dict[str, Any]:
        path = f"/jobs/{check_name(job_id, what='job')}/run"
        return self.request("DELETE", path, params={"dry_run": dry_run}).json()

    def promote(
        self,
        checkpoint_id: str,
        *,
        alias: str,
        by: str,
        reason: str = "",
        evaluation: str | None = None,
        override: bool = False,
    ) -> dict[str, Any]:
        """By the gate: Conflict, its context's `gate` holding what was found, where it refuses. `override` does not ask it."""
        body = {"alias": alias, "by": by, "reason": reason, "evaluation": evaluation, "override": override}
        return self.request("POST", f"/checkpoints/{check_name(checkpoint_id, what='checkpoint')}/promote", json=body).json()

    def rollback(self, alias: str, *, by: str) -> dict[str, Any]:
        return self.request("POST", f"/deployments/{check_name(alias, what='alias')}/rollback", json={"by": by}).json()


def _result(job: Mapping[str, Any]) -> dict[str, Any]:
    if job["status"] == "succeeded":
        return job["result"]
    if job["status"] == "cancelled":
        raise errors.Cancelled(what=f"job {job['id']}")
    problem: Mapping[str, Any] = job.get("error") or {}
    detail = f"job {job['id']} ({job['kind']}) failed: {problem.get('detail')}"
    raise errors.InvalidInput(detail) if problem.get("status") == 422 else errors.LeverPlusError(detail)
