"""The embedded broker and its ownership, on the real server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from leverplus.errors import Conflict, InvalidConfig, Unavailable
from leverplus.files import remove_left_over
from leverplus.launcher import EmbeddedValkey, OwnerLock, Ports, Stack, StackConfig, scorer_devices
from leverplus.launcher.child import Child, ProcessEnded
from leverplus.launcher.gpus import visible_gpus
from leverplus.launcher.process_file import stop_orphans
from leverplus.launcher.process_table import command_line, group_members
from leverplus.launcher.valkey import require_broker, server_program, stop_orphan, without_password

OWNER = """
import sys, time
from pathlib import Path
from leverplus.launcher import EmbeddedValkey, StoppedBySignal, stop_on_signals
try:
    with stop_on_signals(), EmbeddedValkey(Path(sys.argv[1])) as valkey:
        print(valkey.port, valkey.child.pid, flush=True)
        time.sleep(60)
except StoppedBySignal as exc:
    sys.exit(exc.exit_code)
"""


def eventually(condition: Callable[[], bool], limit_s: float = 10.0) -> bool:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def owner(tmp_path: Path) -> Generator[tuple[subprocess.Popen[str], int, int]]:
    """A launcher in another process: itself, its broker's port, its broker's pid."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        port, pid = map(int, process.stdout.readline().split())
        yield process, port, pid
        process.kill()


def ping(url: str) -> bool:
    with redis.Redis.from_url(url, socket_timeout=5) as connection:
        return bool(connection.ping())


def test_broker_answers_keeps_its_queue_and_leaves_nothing(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as valkey:
        assert ping(valkey.url)
        require_broker(valkey.url)
        with redis.Redis.from_url(valkey.url) as connection:
            connection.rpush("celery", "job-1")
        pid = valkey.child.pid
    assert command_line(pid) is None
    assert not (tmp_path / "valkey.pid").exists()
    with EmbeddedValkey(tmp_path) as valkey, redis.Redis.from_url(valkey.url) as connection:
        assert connection.lrange("celery", 0, -1) == [b"job-1"]


def test_folder_name_with_a_space(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path / "a folder") as valkey:
        assert ping(valkey.url)


def test_second_owner_is_refused_and_named(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as valkey:
        with pytest.raises(Conflict, match=f"another launcher \\(pid {os.getpid()}\\)"):
            EmbeddedValkey(tmp_path)
        assert ping(valkey.url)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_leave_no_broker(owner: tuple[subprocess.Popen[str], int, int], number: signal.Signals) -> None:
    process, _, pid = owner
    process.send_signal(number)
    assert process.wait(20) == 128 + number
    assert command_line(pid) is None


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
def test_broker_dies_with_a_killed_owner(owner: tuple[subprocess.Popen[str], int, int], tmp_path: Path) -> None:
    process, _, pid = owner
    process.kill()
    process.wait(10)
    assert eventually(lambda: command_line(pid) is None)
    with EmbeddedValkey(tmp_path) as valkey:  # the lock is free although nobody released it
        assert ping(valkey.url)


def test_orphan_is_stopped_by_the_next_owner(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path):
        pass
    # As a killed owner leaves it where the kernel cannot be asked to stop it.
    orphan = subprocess.Popen(
        [str(server_program()), str(tmp_path / "valkey.conf")], stdout=subprocess.DEVNULL, start_new_session=True
    )
    assert eventually(lambda: (tmp_path / "valkey.pid").exists())
    assert eventually((tmp_path / "valkey.pid").read_text().strip().isdigit)
    with EmbeddedValkey(tmp_path) as valkey:
        assert orphan.wait(5) == 0
        assert valkey.child.pid != orphan.pid
        assert ping(valkey.url)


def test_pid_of_another_program_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "valkey.pid").write_text(f"{os.getpid()}\n")
    assert stop_orphan(tmp_path) is None
    assert not (tmp_path / "valkey.pid").exists()


def test_lock_is_free_after_release(tmp_path: Path) -> None:
    first = OwnerLock(tmp_path / "lock")
    with pytest.raises(Conflict):
        OwnerLock(tmp_path / "lock")
    first.release()
    first.release()
    OwnerLock(tmp_path / "lock").release()


def test_child_that_ends_shows_its_last_lines(tmp_path: Path) -> None:
    child = Child("talker", [sys.executable, "-c", "print('first'); print('last words'); exit(3)"], log=tmp_path / "talker.log")
    assert eventually(lambda: child.exit_code() is not None)
    with pytest.raises(ProcessEnded, match="talker ended with exit code 3") as caught:
        child.require_running()
    assert caught.value.context["tail"] == ["first", "last words"]
    child.stop(limit_s=1.0)
    program = "print('error: no such model'); print('stopping'); exit(3)"
    child = Child("talker", [sys.executable, "-c", program], log=tmp_path / "talker.log")
    assert eventually(lambda: child.exit_code() is not None)
    assert child.tail() == ["error: no such model"]
    child.stop(limit_s=1.0)


def test_child_is_stopped_with_its_own_children_even_when_it_refuses(tmp_path: Path) -> None:
    program = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "subprocess.Popen(['sleep', '60']); print('up', flush=True); time.sleep(60)"
    )
    child = Child("stubborn", [sys.executable, "-c", program], log=tmp_path / "log")
    assert eventually(lambda: child.tail() == ["up"])
    child.stop(limit_s=0.1)
    assert child.exit_code() == -signal.SIGKILL
    assert group_members(child.pid) == []


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_left_over_services_are_stopped_by_start_time_and_by_environment(tmp_path: Path) -> None:
    import orjson

    leader = Child("vqa_scorer", ["sleep", "60"], log=tmp_path / "a.log")
    stranger = Child("selector_api", ["sleep", "60"], log=tmp_path / "b.log")
    listed = [
        {"name": "vqa_scorer", "pid": leader.pid, "started": leader.started},
        {"name": "selector_api", "pid": stranger.pid, "started": "1"},
    ]
    (tmp_path / "processes.json").write_bytes(orjson.dumps(listed))
    assert stop_orphans(tmp_path) == ["vqa_scorer"]
    assert eventually(lambda: leader.exit_code() is not None)
    assert stranger.exit_code() is None
    stranger.stop(limit_s=5.0)


def test_taken_port_names_itself_and_the_option(tmp_path: Path) -> None:
    (tmp_path / "vlm").mkdir()
    (tmp_path / "vlm" / "config.json").write_text("{}")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = StackConfig(data=tmp_path / "data", vlm=tmp_path / "vlm", ports=replace(Ports.free(), trainer=port))
        with pytest.raises(Conflict, match=f"port {port} .* --trainer-port"):
            Stack.start(config)
    OwnerLock(tmp_path / "data" / "launcher.lock").release()


def test_equal_ports_and_a_foreign_host_name_their_options() -> None:
    with pytest.raises(InvalidConfig, match=r"--trainer-port: 8001 is the scorer's port too"):
        Ports(8001, 8001, 8003)
    with pytest.raises(InvalidConfig, match=r"--host: 192\.0\.2\.1 is no address of this machine"):
        Ports.free().require_free("192.0.2.1")


def test_further_scorers_listen_above_the_three_ports(tmp_path: Path) -> None:
    ports = Ports(8001, 8002, 8003).for_scorers(3)
    assert ports.scorers == (8001, 8004, 8005)
    assert Ports().for_scorers(1) == Ports()
    assert len({*Ports.free(scorers=3).named().values()}) == 5
    with pytest.raises(InvalidConfig, match="65536 is no port for scorer 2"):
        Ports(8001, 8002, 65535).for_scorers(2)
    with pytest.raises(InvalidConfig, match=r"--selector-port: 8001 is the scorer's port too"):
        Ports(8001, 8002, 8001)
    environment = StackConfig(data=tmp_path, vlm=None, ports=ports, devices=("cpu",) * 3).environment("redis://broker")
    wanted = "http://127.0.0.1:8001,http://127.0.0.1:8004,http://127.0.0.1:8005"
    assert (environment["LEVERPLUS_SCORER_URL"], environment["LEVERPLUS_SCORER_PORT"]) == (wanted, "8001")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        free = replace(Ports.free(), further_scorers=(taken.getsockname()[1],))
        with pytest.raises(Conflict, match=r"by the scorer 2 .*--scorer-port, --trainer-port and --selector-port"):
            free.require_free("127.0.0.1")


def test_gpus_are_those_that_a_process_would_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lister = tmp_path / "nvidia-smi"
    lister.write_text(
        '#!/bin/sh\n[ "$1" = -L ] || exit 1\n'
        "printf 'GPU 0: Some GPU (UUID: GPU-a)\\n  MIG 1g.10gb Device 0: (UUID: MIG-b)\\nGPU 1: Some GPU (UUID: GPU-c)\\n'\n"
    )
    lister.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == 2
    for chosen, count in (("", 0), ("-1", 0), ("3", 1), ("GPU-a,GPU-c", 2), ("0,-1,1", 1), ("0,1,2,3", 4)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
        assert visible_gpus() == count
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    lister.unlink()
    assert visible_gpus() == 0


def test_each_scorer_gets_a_gpu_or_all_get_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    assert scorer_devices("auto", 1) == ("auto",)
    assert scorer_devices("cuda:2", 1) == scorer_devices("cuda:2", None) == ("cuda:2",)
    assert scorer_devices("auto", 2) == scorer_devices("cuda", 2) == ("cuda:0", "cuda:1")
    assert scorer_devices("auto", None) == ("cuda:0", "cuda:1", "cuda:2")
    assert scorer_devices("cpu", 4) == ("cpu",) * 4
    assert scorer_devices("cpu", None) == ("cpu",)
    with pytest.raises(InvalidConfig, match=r"--scorers: 4 scorers need a GPU each, and 3 GPUs are visible; .*--device cpu"):
        scorer_devices("auto", 4)
    with pytest.raises(InvalidConfig, match="2 scorers cannot all have cuda:1"):
        scorer_devices("cuda:1", 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert scorer_devices("auto", 2) == ("auto", "auto")
    assert scorer_devices("auto", None) == ("auto",)


def test_scorers_are_a_number_or_auto() -> None:
    from leverplus.cli.options import scorer_count

    assert (scorer_count("3"), scorer_count("auto")) == (3, None)
    for given in ("0", "-1", "all", ""):
        with pytest.raises(InvalidConfig, match=r"--scorers: .* is neither 'auto' nor a number"):
            scorer_count(given)


def test_a_folder_without_an_adapter_is_named_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InvalidConfig, match=r"--lora: .*adapter_config\.json"):
        Stack.start(StackConfig(data=tmp_path / "data", vlm=tmp_path, lora=tmp_path, ports=Ports.free()))


def test_a_foreign_program_on_a_port_is_named(tmp_path: Path) -> None:
    from leverplus.launcher.processes import _require_service  # pyright: ignore[reportPrivateUsage]

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                body = b'{"status": "live", "service": "someone else"}'
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                connection.sendall(head.encode() + body)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(Conflict, match="answered by 'someone else', not by vqa_scorer"):
            _require_service(StackConfig(data=tmp_path, vlm=tmp_path), port, "vqa_scorer")
        thread.join(10)


def test_temporary_files_of_dead_writers_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait(10)
    (tmp_path / "checkpoints").mkdir()
    dead = tmp_path / "checkpoints" / f".c.{gone.pid}.01234567.tmp"
    dead.mkdir()
    (dead / "model.safetensors").write_text("half")
    own, foreign = tmp_path / f".f.{os.getpid()}.01234567.tmp", tmp_path / ".notes.tmp"
    for path in (own, foreign):
        path.write_text("x")
    # A copy has its original's mtime, and is young all the same.
    os.utime(dead, (1, 1))
    assert remove_left_over(tmp_path) == []
    later = time.time() + 61
    monkeypatch.setattr("leverplus.files.time.time", lambda: later)
    assert remove_left_over(tmp_path) == [dead]
    assert not dead.exists()
    assert own.exists()
    # In another container the pid may be anyone's: age alone decides.
    assert remove_left_over(tmp_path, older_than_s=3600, all_writers_here=False) == []
    assert remove_left_over(tmp_path, all_writers_here=False) == [own]
    assert foreign.exists()


def _free(count: int) -> list[int]:
    from leverplus.launcher.config import free_ports

    return free_ports(count)


def test_free_ports_differ() -> None:
    ports = Ports.free()
    assert len({ports.scorer, ports.trainer, ports.selector}) == 3


def test_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"no model directory .* --vlm"):
        Stack.start(StackConfig(data=tmp_path, vlm=tmp_path / "nothing", ports=Ports.free()))


def test_broker_that_is_away_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    url = f"redis://user:secret@127.0.0.1:{_free(1)[0]}/0"
    with pytest.raises(Unavailable, match=r"REDIS_URL=redis://…@.*unset it") as caught:
        Stack.start(StackConfig(data=tmp_path / "data", vlm=tmp_path, ports=Ports.free(), redis_url=url))
    assert "secret" not in str(caught.value)
    assert without_password("redis://localhost:6379/0") == "redis://localhost:6379/0"


def test_environment_of_the_services(tmp_path: Path) -> None:
    config = StackConfig(
        data=tmp_path, vlm=tmp_path / "vlm", ports=Ports(1, 2, 3), host="0.0.0.0", variables={"LEVERPLUS_PROMPT": "x"}
    )
    environment = config.environment("redis://broker")
    assert environment["LEVERPLUS_SCORER_URL"] == "http://127.0.0.1:1"
    assert environment["LEVERPLUS_HOST"] == "0.0.0.0"
    assert environment["REDIS_URL"] == "redis://broker"
    assert environment["LEVERPLUS_PROMPT"] == "x"
    assert "DATABASE_URL" not in environment


def test_another_shell_is_told_what_its_commands_would_not_ask_by_themselves(tmp_path: Path) -> None:
    assert StackConfig(data=tmp_path, vlm=None).exports() == []
    assert StackConfig(data=tmp_path, vlm=None, host="0.0.0.0", ports=Ports(trainer=9002)).exports() == [
        "export LEVERPLUS_TRAINER_URL=http://127.0.0.1:9002"
    ]
    elsewhere = StackConfig(data=tmp_path, vlm=None, host="10.0.0.7", ports=Ports(selector=9003)).exports()
    assert elsewhere == [
        "export LEVERPLUS_SCORER_URL=http://10.0.0.7:8001",
        "export LEVERPLUS_TRAINER_URL=http://10.0.0.7:8002",
        "export LEVERPLUS_SELECTOR_URL=http://10.0.0.7:9003",
    ]


def test_the_scorer_gets_the_directory_it_was_told_or_the_server_of_the_environment(tmp_path: Path) -> None:
    told = StackConfig(data=tmp_path, vlm=tmp_path / "vlm").environment("redis://broker")
    assert (told["LEVERPLUS_VLM"], told["LEVERPLUS_OPENAI_URL"]) == (str(tmp_path / "vlm"), "")
    inherited = StackConfig(data=tmp_path, vlm=None).environment("redis://broker")
    assert inherited["LEVERPLUS_VLM"] == ""
    assert "LEVERPLUS_OPENAI_URL" not in inherited


def test_up_scores_with_one_vlm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from leverplus.cli.options import scoring_model

    monkeypatch.delenv("LEVERPLUS_OPENAI_URL", raising=False)
    assert scoring_model(tmp_path) == tmp_path
    monkeypatch.setenv("LEVERPLUS_OPENAI_URL", "http://127.0.0.1:8000/v1")
    assert scoring_model(None) is None
    with pytest.raises(InvalidConfig, match="LEVERPLUS_OPENAI_URL are both set"):
        scoring_model(tmp_path)


def test_a_program_that_ends_again_and_again_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from leverplus.launcher import restarts

    child = Child("faulty", [sys.executable, "-c", "exit('error: no such model')"], log=tmp_path / "faulty.log")
    assert eventually(lambda: child.exit_code() is not None)
    now = 100.0
    monkeypatch.setattr("leverplus.launcher.restarts.time.monotonic", lambda: now)
    allowed = restarts.Restarts()
    for _ in range(restarts.MOST):
        allowed.allow(child)
    now = 100.0 + restarts.WITHIN_S + 1
    allowed.allow(child)
    for _ in range(restarts.MOST - 1):
        allowed.allow(child)
    with pytest.raises(ProcessEnded, match="faulty ended with exit code 1"):
        allowed.allow(child)
    child.stop(limit_s=1.0)
