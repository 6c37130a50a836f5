"""`leverplus up` starts again what ends, and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import redis

from leverplus.client import TrainerClient
from leverplus.data_root import DataRoot
from leverplus.dataset.easy_vqa import import_easy_vqa
from leverplus.doctor import service_findings
from leverplus.launcher import Ports
from leverplus.launcher.process_table import command_line

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

DATASET = "easy-vqa-tiny"
DEFAULT_VLM = Path(__file__).parents[2] / "assets" / "in-context-vlm"
LIMIT_S = 120.0


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def status_of(url: str) -> int | None:
    with suppress(httpx.TransportError):
        return httpx.get(url, timeout=30, trust_env=False).status_code
    return None


def pids(data: Path) -> dict[str, int]:
    """By name, the broker among them; without those that are being started."""
    listed = json.loads((data / "processes.json").read_text()) if (data / "processes.json").exists() else []
    found = {entry["name"]: entry["pid"] for entry in listed}
    with suppress(FileNotFoundError, ValueError):
        found["valkey"] = int((data / "valkey" / "valkey.pid").read_text())
    return found


def broker_says(url: str) -> list[bytes] | None:
    with suppress(redis.RedisError), redis.Redis.from_url(url) as connection:
        return connection.lrange("kept", 0, -1)  # pyright: ignore[reportReturnType]
    return None


def test_what_is_killed_is_started_again_and_does_its_work(tmp_path: Path) -> None:
    data, ports = tmp_path / "data", Ports.free()
    import_easy_vqa(
        DataRoot(data).dataset(DATASET), name=DATASET, train_images=4, test_images=2, questions_per_image=2, val_share=0.0
    )
    urls = {"vqa_scorer": ports.scorer, "pointer_trainer": ports.trainer, "selector_api": ports.selector}
    arguments = ["--scorer-port", str(ports.scorer), "--trainer-port", str(ports.trainer)]
    arguments += ["--selector-port", str(ports.selector), "--data", str(data), "--vlm", str(DEFAULT_VLM)]
    program = "from leverplus.cli import app; app()"
    with (tmp_path / "said").open("w") as said:
        launcher = subprocess.Popen(
            [sys.executable, "-c", program, "up", *arguments], stdout=said, stderr=said, start_new_session=True
        )
    try:

        def is_up(name: str) -> bool:
            assert launcher.poll() is None, (tmp_path / "said").read_text()
            # Nothing is deployed here, so the selector is alive and not ready.
            probe = "live" if name == "selector_api" else "ready"
            return status_of(f"http://127.0.0.1:{urls[name]}/health/{probe}") == 200

        def has_another_pid(name: str, pid: int) -> bool:
            assert launcher.poll() is None, (tmp_path / "said").read_text()
            return pids(data).get(name, pid) != pid

        def has_started() -> bool:
            return "^C stops everything" in (tmp_path / "said").read_text()

        assert eventually(has_started), (tmp_path / "said").read_text()
        told = (tmp_path / "said").read_text().split()
        for name, port in {"SCORER": ports.scorer, "TRAINER": ports.trainer, "SELECTOR": ports.selector}.items():
            assert f"LEVERPLUS_{name}_URL=http://127.0.0.1:{port}" in told, "for another shell"
        found = {finding.what: finding.state for finding in service_findings({}, data)}
        # Nothing is deployed.
        assert found.pop("selector_api") == "note"
        assert found == dict.fromkeys(("launcher", "vqa_scorer", "pointer_trainer", "pointer_trainer.worker"), "ok")
        first = pids(data)
        configuration = (data / "valkey" / "valkey.conf").read_text().splitlines()
        port = next(line.split()[1] for line in configuration if line.startswith("port "))
        broker_url = f"redis://127.0.0.1:{port}/0"
        with redis.Redis.from_url(broker_url) as connection:
            connection.rpush("kept", "message")
            connection.execute_command("WAITAOF", 1, 0, 5000)
        for name, pid in first.items():
            os.kill(pid, signal.SIGKILL)
            assert eventually(lambda name=name, pid=pid: has_another_pid(name, pid)), f"{name} is started again"
        for name in urls:
            assert eventually(lambda name=name: is_up(name)), f"{name} works again"
        assert eventually(lambda: broker_says(broker_url) == [b"message"]), "what was written to the broker is kept"
        with TrainerClient(f"http://127.0.0.1:{ports.trainer}") as trainer:
            assert trainer.wait(trainer.embed(DATASET), limit_s=LIMIT_S)["items"] > 0
        last = pids(data)
        assert last.keys() == first.keys()
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(60) == 128 + signal.SIGTERM
        assert not any(command_line(pid) for pid in (*first.values(), *last.values())), "nothing stays behind"
    finally:
        if launcher.poll() is None:
            launcher.send_signal(signal.SIGTERM)
            launcher.wait(60)
    lines = (tmp_path / "said").read_text().splitlines()
    for name in first:
        assert any(line.startswith(f"{name} was ended by SIGKILL; started again") for line in lines), lines
