"""The main job on the real processes, and that nothing of them stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from leverplus.checkpoints import load_checkpoint
from leverplus.client import ScorerClient, TrainerClient
from leverplus.data_root import DataRoot
from leverplus.errors import Conflict, LeverPlusError
from leverplus.launcher import Ports, Stack, StackConfig
from leverplus.launcher.process_table import command_line, group_members
from leverplus.rl_data import read
from leverplus.selector_client import SelectorClient
from pointer_trainer.openings import read_openings

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

DATASET = "easy-vqa-tiny"
DEFAULT_VLM = Path(__file__).parents[2] / "assets" / "in-context-vlm"
POOL = {"sampler": "random", "k": 16}
GENERATE: dict[str, Any] = {
    "dataset": DATASET, "split": "train", "queries": 10, "shots": [1, 2], "num_beams": 2, "temps": [1.0],
    "num_samples_per_temp": 1, "num_random": 1, "num_retrieval": 1, "pool": POOL,
}  # fmt: skip
LIMIT_S = 240.0
SYSTEMS = ("random", "best-fixed", "similar-image", "similar-text", "similar-joint", "v3")


def eventually(condition: Callable[[], bool], limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture(scope="module")
def trained(stack: Stack) -> dict[str, Any]:
    """embed, generate, train, evaluate, promote: the result of each."""
    with TrainerClient(stack.trainer_url) as trainer:
        phases: list[str] = []

        def run(job_id: str) -> dict[str, Any]:
            return trainer.wait(job_id, limit_s=LIMIT_S, on_progress=lambda progress: phases.append(str(progress.get("phase"))))

        embedded = run(trainer.embed(DATASET))
        generated = run(trainer.generate(GENERATE))
        job_id = trainer.train([generated["rl_data_id"]], {"rce_epochs": 2})
        checkpoint = run(job_id)
        body = {"dataset": DATASET, "queries": 8, "checkpoints": [checkpoint["checkpoint_id"]], "bootstrap_draws": 200}
        body |= {"shots": [0, 1, 2], "split": "test", "final": {"by": "a test"}}
        evaluated = run(trainer.evaluate(body))
        promoted = trainer.promote(
            checkpoint["checkpoint_id"], alias="production", by="a test", reason="to be served", override=True
        )
    return {
        "embedded": embedded,
        "generated": generated,
        "train": checkpoint,
        "evaluated": evaluated,
        "promoted": promoted,
        "phases": phases,
    }


def test_generation_reports_how_every_score_was_obtained(trained: dict[str, Any]) -> None:
    scores, report = trained["generated"]["scores"], trained["generated"]["report"]
    assert scores["scored"] == scores["file"] == report["candidates"]
    assert (scores["fallback"], scores["error"], scores["cached"]) == (0, 0, 0)
    assert report["queries"] == 10
    assert set(report["shots"]) == {"0", "1", "2"}
    assert "score" in trained["phases"]


def test_what_was_trained_is_what_is_served(stack: Stack, trained: dict[str, Any]) -> None:
    root = DataRoot(stack.config.data)
    checkpoint_id = trained["train"]["checkpoint_id"]
    _, info = load_checkpoint(root.checkpoint(checkpoint_id))
    data = read(root.rl_data(trained["generated"]["rl_data_id"]))
    with SelectorClient(stack.selector_url) as selector:
        selector.ready()
        for query_id in (0, 36):
            answer = selector.select(query_id=query_id, shots=2)
            assert answer["checkpoint"] == checkpoint_id == trained["promoted"]["checkpoint_id"]
            assert answer["fingerprint"]["pool"] == data.fingerprint.digests()["pool"] == info.fingerprint.digests()["pool"]
            assert answer["fingerprint"]["dataset"] == data.fingerprint.digests()["dataset"]
            assert len(set(answer["pointer"])) == 2
            assert query_id not in answer["pointer"]
            assert [chosen["item_id"] for chosen in answer["icds"]] == answer["pointer"]
            image = selector.request("GET", answer["icds"][0]["image_url"])
            assert image.content.startswith(b"\x89PNG")
    assert trained["promoted"]["reason"] == "to be served"


def test_the_served_choice_is_in_the_pool_it_was_trained_with(stack: Stack, trained: dict[str, Any]) -> None:
    records = read(DataRoot(stack.config.data).rl_data(trained["generated"]["rl_data_id"])).records
    with SelectorClient(stack.selector_url) as selector:
        for record in records[:3]:
            answer = selector.select(query_id=record.query_id, shots=1)
            assert answer["pool"]["size"] == len(record.candidate_pool_ids) == 16
            assert set(answer["pointer"]) <= set(record.candidate_pool_ids)


def test_scores_are_committed_and_not_made_twice(stack: Stack, trained: dict[str, Any]) -> None:
    with TrainerClient(stack.trainer_url) as trainer, ScorerClient(stack.scorer_url) as scorer:
        before = scorer.stats()["totals"]["generated"]
        again = trainer.wait(trainer.generate(GENERATE), limit_s=LIMIT_S)
        assert again["rl_data_id"] != trained["generated"]["rl_data_id"]
        assert again["scores"]["cached"] == again["scores"]["scored"] == trained["generated"]["scores"]["scored"]
        assert scorer.stats()["totals"]["generated"] == before
    root = DataRoot(stack.config.data)
    assert read(root.rl_data(again["rl_data_id"])).records == read(root.rl_data(trained["generated"]["rl_data_id"])).records


def test_embedding_again_keeps_what_is_there(stack: Stack, trained: dict[str, Any]) -> None:
    with TrainerClient(stack.trainer_url) as trainer:
        again = trainer.wait(trainer.embed(DATASET), limit_s=LIMIT_S)
    assert again["kept"]
    assert again["sha256"] == trained["embedded"]["sha256"]


def test_evaluation_has_every_system_with_intervals(trained: dict[str, Any]) -> None:
    rows = {(row["system"], row["shots"]): row for row in trained["evaluated"]["rows"]}
    assert set(rows) == {("zero-shot", 0)} | {(name, k) for name in SYSTEMS for k in (1, 2)}
    for row in rows.values():
        assert row["n"] == 8
        assert 0 <= row["low"] <= row["mean"] <= row["high"] <= 1


def test_the_downstream_example_asks_the_scorer_or_any_server(
    stack: Stack, trained: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    import downstream

    asked: list[dict[str, Any]] = []

    class Vlm(BaseHTTPRequestHandler):
        """A server of chat completions that answers "circle"."""

        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            body = json.dumps({"choices": [{"message": {"content": "circle"}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    common = ["--data", str(stack.config.data), "--selector", stack.selector_url, "--queries", "4", "--shots", "1"]
    downstream.main([*common, "--scorer", stack.scorer_url, "--policies", "random", "v3", "best_fixed", "--by", "me"])
    printed = capsys.readouterr().out
    opening = read_openings(DataRoot(stack.config.data), DATASET)[-1]
    assert (opening.by, opening.split, opening.queries, opening.checkpoints) == (
        "me",
        "test",
        4,
        [trained["train"]["checkpoint_id"]],
    )
    assert f"4 test queries of {DATASET}, {trained['train']['checkpoint_id']}" in printed
    assert all(f"| {policy} |" in printed for policy in ("random", "v3", "best_fixed"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Vlm) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/v1"
            downstream.main([*common, "--openai-url", url, "--openai-model", "any"])
        finally:
            server.shutdown()
    assert "| v3 | 1 | random |" in capsys.readouterr().out
    assert len(asked) == 8
    assert asked[0]["messages"][-1]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")


def test_promotion_says_whether_the_choice_depends_on_the_query(trained: dict[str, Any]) -> None:
    health = trained["promoted"]["health"]
    assert health["queries"] == 18
    assert 0 <= health["changed_when_swapped"] <= 1


def test_a_mistake_is_a_problem_and_starts_no_job(stack: Stack, trained: dict[str, Any]) -> None:
    with TrainerClient(stack.trainer_url) as trainer:
        jobs = len(trainer.jobs())
        with pytest.raises(LeverPlusError, match="rce_epoch"):
            trainer.train([trained["generated"]["rl_data_id"]], {"rce_epoch": 2})
        with pytest.raises(LeverPlusError, match="nothing"):
            trainer.embed("nothing")
        assert len(trainer.jobs()) == jobs


def test_a_second_launcher_is_refused_and_the_first_goes_on(stack: Stack, trained: dict[str, Any]) -> None:
    with pytest.raises(Conflict, match="another launcher"):
        Stack.start(StackConfig(data=stack.config.data, vlm=DEFAULT_VLM, ports=Ports.free()))
    stack.require_running()


def started_pids(data: Path) -> list[int]:
    """The processes of a running launcher, from the files that it keeps for its successor."""
    listed = json.loads((data / "processes.json").read_text())
    return [*(int(entry["pid"]) for entry in listed), int((data / "valkey" / "valkey.pid").read_text())]


def start(log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name not in ("REDIS_URL", "DATABASE_URL")}
    with log.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, "-c", "from leverplus.cli import app; app()", *arguments],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_an_interrupted_demo_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    data, log = tmp_path / "demo", tmp_path / "log"
    demo = start(log, "demo", "--quick", "--data", str(data), "--vlm", str(DEFAULT_VLM))
    try:
        assert eventually(lambda: "embed: embed" in log.read_text(), 120), log.read_text()
        pids = started_pids(data)
        assert len(pids) == 5
        assert all(command_line(pid) for pid in pids)
        demo.send_signal(number)
        assert demo.wait(60) == 128 + number
    finally:
        demo.kill()
    assert [pid for pid in pids if command_line(pid)] == []
    assert "Traceback" not in log.read_text()


def test_a_killed_launcher_is_cleaned_up_after(tmp_path: Path) -> None:
    data, log = tmp_path / "data", tmp_path / "log"
    ports = Ports.free()
    options = [f"--{name}-port={getattr(ports, name)}" for name in ("scorer", "trainer", "selector")]
    up = start(log, "up", "--data", str(data), "--vlm", str(DEFAULT_VLM), *options)
    try:
        assert eventually(lambda: "^C stops everything" in log.read_text(), 120), log.read_text()
        pids = started_pids(data)
    finally:
        up.kill()
        up.wait(10)
    if sys.platform == "linux":
        # The worker's own child is of its group.
        assert eventually(lambda: not any(group_members(pid) for pid in pids), 3.0)
    with Stack.start(StackConfig(data=data, vlm=DEFAULT_VLM, ports=ports)) as stack:
        assert [pid for pid in pids if command_line(pid)] == []
        with ScorerClient(stack.scorer_url) as scorer:
            scorer.ready()


def test_a_service_that_dies_is_named_with_its_last_lines(tmp_path: Path) -> None:
    broken = tmp_path / "vlm"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    with pytest.raises(LeverPlusError, match="vqa_scorer"):
        Stack.start(StackConfig(data=tmp_path / "data", vlm=broken, ports=Ports.free(), ready_limit_s=60))
