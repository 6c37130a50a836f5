"""One trace from a client's request through trainer, worker and scorer, as a collector gets it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from leverplus.client import TrainerClient
from leverplus.launcher import Stack
from leverplus.selector_client import SelectorClient

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

DATASET = "easy-vqa-tiny"
LIMIT_S = 240.0
GENERATE: dict[str, Any] = {
    "dataset": DATASET, "split": "train", "shots": [1], "num_beams": 1, "temps": [], "num_random": 2, "num_retrieval": 2,
    "pool": {"sampler": "random", "k": 8},
}  # fmt: skip
TRACE = "0af7651916cd43dd8448eb211c80319c"


class Collector(ThreadingHTTPServer):
    """OTLP over HTTP. `spans`: (service, span), as they came."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.spans: list[tuple[str, Any]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def of(self, trace_id: str) -> dict[tuple[str, str], Any]:
        return {(service, span.name): span for service, span in list(self.spans) if span.trace_id.hex() == trace_id}


class _Receiver(BaseHTTPRequestHandler):
    server: Collector  # type: ignore[assignment]

    def do_POST(self) -> None:
        sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
        for one in sent.resource_spans:
            service = next(each.value.string_value for each in one.resource.attributes if each.key == "service.name")
            self.server.spans += [(service, span) for scope in one.scope_spans for span in scope.spans]
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        return


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_one_trace_through_all_services(tiny_data: Callable[..., Path], start_stack: Callable[..., Stack]) -> None:
    data = tiny_data()
    with Collector() as collector:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}", "OTEL_BSP_SCHEDULE_DELAY": "200"}
        with start_stack(data, variables=variables) as stack, TrainerClient(stack.trainer_url) as trainer:
            trainer.wait(trainer.embed(DATASET), limit_s=LIMIT_S)
            headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
            job_id = trainer.request("POST", "/rl-data/generate", json=GENERATE, headers=headers).json()["job_id"]
            rl_data = trainer.wait(job_id, limit_s=LIMIT_S)["rl_data_id"]
            training = {"rl_data": [rl_data], "config": {"rce_epochs": 2, "hidden_dim": 16}}
            headers = {"traceparent": f"00-{TRACE[::-1]}-b7ad6b7169203331-01"}
            job_id = trainer.request("POST", "/train", json=training, headers=headers).json()["job_id"]
            checkpoint = trainer.wait(job_id, limit_s=LIMIT_S)["checkpoint_id"]
            promotion = {"alias": "production", "by": "test", "reason": "first", "override": True}
            trainer.request("POST", f"/checkpoints/{checkpoint}/promote", json=promotion)
            with SelectorClient(stack.selector_url) as selector:
                for _ in range(2):
                    selector.select(query_id=1)
            assert httpx.get(f"{stack.selector_url}/health/live").status_code == 200
            until(lambda: ("trainer_worker", "job generate") in collector.of(TRACE))
            until(lambda: ("trainer_worker", "job train") in collector.of(TRACE[::-1]))
            until(lambda: sum(span.name == "select" for _, span in collector.spans) == 2)
        collector.shutdown()
    generated = collector.of(TRACE)
    way = [
        ("pointer_trainer", "POST /rl-data/generate"),
        ("trainer_worker", "job generate"),
        ("trainer_worker", "POST vqa_scorer"),
        ("vqa_scorer", "POST /score"),
        ("vqa_scorer", "score batch"),
    ]
    assert set(way) <= generated.keys()
    assert generated[way[0]].parent_span_id.hex() == "b7ad6b7169203331"
    assert generated[way[1]].parent_span_id == generated[way[0]].span_id
    calls = [span for service, span in collector.spans if (service, span.name) == way[2]]
    assert {span.parent_span_id for span in calls} == {generated[way[1]].span_id}
    assert generated[way[3]].parent_span_id in {span.span_id for span in calls}
    assert attributes(generated[way[1]])["job.outcome"] == "succeeded"
    batch = attributes(generated[way[4]])
    assert batch["batch.size"] > 0
    assert batch["batch.tokens"] > batch["batch.size"]
    assert batch["batch.failed"] == 0
    epochs = [span for _, span in collector.spans if span.name == "training epoch"]
    assert [attributes(span)["training.epoch"] for span in epochs] == [1, 2]
    assert {span.trace_id.hex() for span in epochs} == {TRACE[::-1]}
    first, second = (attributes(span) for _, span in collector.spans if span.name == "select")
    assert (first["select.known"], second["select.known"]) == (False, True)
    assert (first["select.pool_size"], first["select.shots"]) == (8, 1)
    assert not any("/health" in span.name for _, span in collector.spans)
