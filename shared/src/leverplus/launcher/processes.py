"""The whole stack of one data folder: broker, scorer, trainer, worker, selector."""

from __future__ import annotations

import http.client
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Never, Self

import orjson

from leverplus.client import ServiceClient
from leverplus.errors import Conflict, DeadlineExceeded, InvalidConfig
from leverplus.files import remove_left_over
from leverplus.launcher.child import Child
from leverplus.launcher.config import StackConfig
from leverplus.launcher.ownership import OwnerLock
from leverplus.launcher.process_file import process_file, stop_orphans, write_processes
from leverplus.launcher.restarts import Restarts
from leverplus.launcher.valkey import EmbeddedValkey, require_broker, stop_orphan


@dataclass(frozen=True)
class _Program:
    """A process to start: what it is called, the port and the probe that say it can be used, its own variables."""

    name: str
    module: str
    port: int | None = None
    probe: str = "/health/ready"
    variables: Mapping[str, str] = field(default_factory=dict[str, str])


def _programs(config: StackConfig) -> list[_Program]:
    scorers = [
        _Program(
            "vqa_scorer" if number == 1 else f"vqa_scorer-{number}",
            "vqa_scorer",
            port,
            variables={"LEVERPLUS_SCORER_PORT": str(port), "LEVERPLUS_DEVICE": device},
        )
        for number, (port, device) in enumerate(zip(config.ports.scorers, config.devices, strict=True), start=1)
    ]
    return [
        *scorers,
        _Program("pointer_trainer", "pointer_trainer", config.ports.trainer),
        _Program("pointer_trainer.worker", "pointer_trainer.worker"),
        # It is ready only once something is promoted.
        _Program("selector_api", "selector_api", config.ports.selector, "/health/live"),
    ]


Report = Callable[[str], None]


class Stack:
    """Running processes. `with Stack.start(config) as stack:` stops them all at its end, last started first."""

    def __init__(self, config: StackConfig, redis_url: str) -> None:
        self.config = config
        self.redis_url = redis_url
        self.scorer_url = config.url(config.ports.scorer)
        self.scorer_urls = tuple(map(config.url, config.ports.scorers))
        self.trainer_url = config.url(config.ports.trainer)
        self.selector_url = config.url(config.ports.selector)
        self._urls = {program.name: config.url(program.port) for program in _programs(config) if program.port is not None}
        self._broker: EmbeddedValkey | None = None
        self._children: dict[str, Child] = {}
        self._restarts = Restarts()
        self._end = ExitStack()

    @classmethod
    def start(cls, config: StackConfig, *, report: Report | None = None, prepare: Callable[[], None] | None = None) -> Self:
        """Starts what `config` says and returns when scorers and trainer are ready; `report` is told each step.

        `prepare` is called when the folder is owned and nothing of an earlier launcher runs in it, before anything starts.

        Raises Conflict (folder owned, port taken), Unavailable (broker), ProcessEnded (with its last log lines) or
        DeadlineExceeded; whatever had been started is stopped then.
        """
        tell = report or (lambda _line: None)
        if config.vlm is not None:
            require_model(config.vlm)
        if config.lora is not None and not (config.lora / "adapter_config.json").is_file():
            raise InvalidConfig(
                field="--lora", reason=f"{config.lora} is no folder of a LoRA adapter (it has no adapter_config.json)"
            )
        config.data.mkdir(parents=True, exist_ok=True)
        with ExitStack() as end:
            lock = OwnerLock(config.data / "launcher.lock")
            end.callback(lock.release)
            for name in stop_orphans(config.data):
                tell(f"stopped {name}, which an earlier launcher had left behind")
            stop_orphan(config.data / "valkey")
            for path in remove_left_over(config.data):
                tell(f"removed {path.relative_to(config.data)}, which a killed process had left behind")
            if prepare is not None:
                prepare()
            config.ports.require_free(config.host)
            if config.redis_url is not None:
                require_broker(config.redis_url)
                tell("broker: REDIS_URL")
                stack = cls(config, config.redis_url)
            else:
                broker = end.enter_context(EmbeddedValkey(config.data / "valkey", log=_log(config, "valkey")))
                tell(f"broker: embedded Valkey on port {broker.port}")
                stack = cls(config, broker.url)
                stack._broker = broker
            end.callback(process_file(config.data).unlink, missing_ok=True)
            for program in _programs(config):
                stack._start(program)
                end.callback(stack._stop, program.name)
            stack._wait_until_ready(tell)
            stack._end = end.pop_all()
        return stack

    def stop(self) -> None:
        """Stops every process in reverse order, then gives the folder free; a second call does nothing."""
        self._end.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def children(self) -> tuple[Child, ...]:
        """In the order in which they were started."""
        return (*(() if self._broker is None else (self._broker.child,)), *self._children.values())

    def require_running(self) -> None:
        """ProcessEnded, with the last log lines, if any process has ended."""
        for child in self.children:
            child.require_running()

    def keep_running(self, report: Report) -> Never:
        """Starts again what ends, until a signal or what `restart_ended` raises ends the wait."""
        while True:
            self.restart_ended(report)
            time.sleep(0.2)

    def restart_ended(self, report: Report) -> None:
        """Starts again what has ended, on its port and with its data, and tells of it; does not wait until it is ready.

        Called from the thread that started the stack. ProcessEnded where one ends again and again (`Restarts`), Unavailable where
        the broker does not come back.
        """
        for child in self.children:
            code = child.exit_code()
            if code is None:
                continue
            self._restarts.allow(child)
            report(f"{child.name} {_told(code)}; started again (its log is {child.log})")
            if self._broker is not None and child is self._broker.child:
                self._broker.restart()
                continue
            # Whatever it had started must not go on beside its successor.
            child.stop(limit_s=0.0)
            self._start(next(program for program in _programs(self.config) if program.name == child.name))

    def _stop(self, name: str) -> None:
        self._children[name].stop(limit_s=self.config.stop_limit_s)

    def _start(self, program: _Program) -> None:
        child = Child(
            program.name,
            # -P: a folder of the working directory must not pass for a package (`datasets`).
            [sys.executable, "-P", "-m", program.module],
            log=_log(self.config, program.name),
            environment={**self.config.environment(self.redis_url), **program.variables},
            # An orderly end takes as long as the work in hand, and would meanwhile talk to whoever takes over the ports.
            # Nothing is lost: scores are committed, and a job is resumed when its lease runs out.
            death_signal=signal.SIGKILL,
        )
        self._children[program.name] = child
        write_processes(self.config.data, self._children.values(), self._urls)

    def _wait_until_ready(self, tell: Report) -> None:
        deadline = time.monotonic() + self.config.ready_limit_s
        for program in _programs(self.config):
            if program.port is None:
                continue
            said: str | None = None
            while True:
                self.require_running()
                status, said = _probe(self.config, program.port, program.probe, said)
                if status == 200:
                    _require_service(self.config, program.port, program.module)
                    break
                if time.monotonic() > deadline:
                    limit = f"{self.config.ready_limit_s:.0f}"
                    raise DeadlineExceeded(
                        f"{program.name} was not ready within {limit} s"
                        + (f": {said}" if said else f"; see {_log(self.config, program.name)}")
                    )
                time.sleep(0.1)
            device = program.variables.get("LEVERPLUS_DEVICE", "auto")
            tell(f"{program.name} on {self.config.url(program.port)}" + (f", {device}" if device != "auto" else ""))


def _told(code: int) -> str:
    return f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"


def _probe(config: StackConfig, port: int, path: str, said: str | None) -> tuple[int | None, str | None]:
    """Status of a health probe, None while nothing listens, and the last reason given for not being ready.

    http.client knows no proxies: a machine's HTTP_PROXY must not stand between the launcher and its children.
    """
    connection = http.client.HTTPConnection(config.url(port).removeprefix("http://"), timeout=5.0)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException):
        return None, said
    finally:
        connection.close()
    try:
        problem = orjson.loads(body)
    except orjson.JSONDecodeError:
        return answer.status, said
    return answer.status, problem.get("detail", said) if isinstance(problem, dict) else said


def _require_service(config: StackConfig, port: int, module: str) -> None:
    """Conflict if another program than the one that was started answers on its port."""
    with ServiceClient(config.url(port), timeout_s=10.0) as client:
        found = client.name()
    if found != module:
        raise Conflict(f"port {port} is answered by {found!r}, not by {module}; stop that program or choose another port")


def require_model(vlm: Path) -> None:
    if not (vlm / "config.json").is_file():
        raise InvalidConfig(
            field="vlm", reason=f"{vlm} is no model directory (it has no config.json); name one with --vlm or LEVERPLUS_VLM"
        )


def _log(config: StackConfig, name: str) -> Path:
    return config.data / "logs" / f"{name}.log"
