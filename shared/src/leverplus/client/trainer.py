"""The trainer: jobs, RL data, checkpoints and deployments."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from leverplus.client.service import ServiceClient
from leverplus.data_root import check_name
from leverplus.errors import Cancelled, DeadlineExceeded, InvalidInput, LeverPlusError

_TERMINAL = {"succeeded", "failed", "cancelled"}


class TrainerClient(ServiceClient):
    """What starts a job returns the job's id."""

    service = "pointer_trainer"

    def _submit(self, path: str, body: Mapping[str, Any], idempotency_key: str | None) -> str:
        # A key of its own where none is given: sent again, a request makes no second job.
        headers = {"Idempotency-Key": idempotency_key or secrets.token_hex(16)}
        return self.request("POST", path, json=dict(body), headers=headers).json()["job_id"]

    def embed(self, dataset: str, *, idempotency_key: str | None = None) -> str:
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
        raise DeadlineExceeded(what=f"job {job_id}", limit_s=limit_s)

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
        raise Cancelled(what=f"job {job['id']}")
    problem: Mapping[str, Any] = job.get("error") or {}
    detail = f"job {job['id']} ({job['kind']}) failed: {problem.get('detail')}"
    raise InvalidInput(detail) if problem.get("status") == 422 else LeverPlusError(detail)
