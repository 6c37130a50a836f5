"""What the launcher is told, as values."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from leverplus.errors import Conflict, InvalidConfig


@dataclass(frozen=True)
class Ports:
    """TCP ports of the three services and of further scorers, all different."""

    scorer: int = 8001
    trainer: int = 8002
    selector: int = 8003
    further_scorers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        owner: dict[int, str] = {}
        for name, port in self.named().items():
            if (other := owner.setdefault(port, name)) != name:
                raise InvalidConfig(field=_option(name), reason=f"{port} is the {other}'s port too; choose another")
            if port > _LARGEST:
                raise InvalidConfig(field=_option(name), reason=f"{port} is no port for {name}; the largest is {_LARGEST}")

    @classmethod
    def free(cls, host: str = "127.0.0.1", *, scorers: int = 1) -> Ports:
        """Ports that nothing listens on now."""
        first, *further, trainer, selector = free_ports(2 + scorers, host)
        return cls(first, trainer, selector, tuple(further))

    def for_scorers(self, count: int) -> Ports:
        """With further scorers on the ports that follow the highest of the three."""
        above = max(self.scorer, self.trainer, self.selector) + 1
        return replace(self, further_scorers=tuple(range(above, above + count - 1)))

    @property
    def scorers(self) -> tuple[int, ...]:
        return self.scorer, *self.further_scorers

    def named(self) -> dict[str, int]:
        further = {f"scorer {number}": port for number, port in enumerate(self.further_scorers, start=2)}
        return {"scorer": self.scorer, "trainer": self.trainer, "selector": self.selector, **further}

    def require_free(self, host: str) -> None:
        """Conflict naming the first taken port and the option that changes it."""
        for name, port in self.named().items():
            require_free_port(name, port, host)


_LARGEST = 65535


def _option(name: str) -> str:
    """The option that decides the port of a service; further scorers listen above the highest of the three."""
    return "--scorer-port, --trainer-port and --selector-port" if name[-1].isdigit() else f"--{name}-port"


def require_free_port(name: str, port: int, host: str) -> None:
    """Conflict where the service of that name could not listen there, with the option that changes its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            if isinstance(exc, socket.gaierror) or exc.errno == errno.EADDRNOTAVAIL:
                raise InvalidConfig(
                    field="--host",
                    reason=f"{host} is no address of this machine; 127.0.0.1 is for this machine alone, 0.0.0.0 for all networks",
                ) from exc
            way_out = _option(name) if name[-1].isdigit() else f"{_option(name)} or LEVERPLUS_{name.upper()}_PORT"
            detail = f"port {port} on {host} cannot be used by the {name} ({exc.strerror}); choose another with {way_out}"
            raise Conflict(detail, port=port) from exc


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """`count` different ports that nothing listens on now."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) for _ in range(count)]
        for probe in probes:
            probe.bind((host, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


@dataclass(frozen=True)
class StackConfig:
    """One data folder and the processes that serve it.

    `vlm` None leaves the scorer to the OpenAI-compatible server that the launcher's own environment names.
    `redis_url` None starts an embedded Valkey that the launcher owns. `database_url` None is SQLite in the data folder.
    There is a scorer for each of `devices`. `lora` is an adapter to the model in `vlm`. `variables` are further environment
    variables for every process. Times in seconds.
    """

    data: Path
    vlm: Path | None
    ports: Ports = field(default_factory=Ports)
    host: str = "127.0.0.1"
    redis_url: str | None = None
    database_url: str | None = None
    devices: tuple[str, ...] = ("auto",)
    lora: Path | None = None
    dtype: str = "auto"
    threads: int = 1
    variables: Mapping[str, str] = field(default_factory=dict[str, str])
    ready_limit_s: float = 120.0
    stop_limit_s: float = 5.0

    def __post_init__(self) -> None:
        assert len(self.devices) == len(self.ports.scorers), "a device and a port for each scorer"

    def url(self, port: int) -> str:
        """Where a service is reached from this machine; one that listens everywhere is asked on the loopback."""
        return f"http://{'127.0.0.1' if self.host in ('0.0.0.0', '') else self.host}:{port}"

    def exports(self) -> list[str]:
        """Lines for another shell, whose commands then ask this stack; none where they do so by themselves."""
        usual, own = Ports(), self.ports
        ports = {"SCORER": (own.scorer, usual.scorer), "TRAINER": (own.trainer, usual.trainer)}
        ports["SELECTOR"] = own.selector, usual.selector
        urls = {name: (self.url(port), f"http://127.0.0.1:{asked}") for name, (port, asked) in ports.items()}
        return [f"export LEVERPLUS_{name}_URL={url}" for name, (url, asked) in urls.items() if url != asked]

    def environment(self, redis_url: str) -> dict[str, str]:
        """The variables that the services' settings read."""
        chosen = {
            "LEVERPLUS_DATA": str(self.data.resolve()),
            "LEVERPLUS_VLM": str(self.vlm.resolve()) if self.vlm is not None else "",
            "LEVERPLUS_LORA": str(self.lora.resolve()) if self.lora is not None else "",
            "LEVERPLUS_DEVICE": self.devices[0],
            "LEVERPLUS_DTYPE": self.dtype,
            "LEVERPLUS_THREADS": str(self.threads),
            "LEVERPLUS_HOST": self.host,
            "LEVERPLUS_SCORER_PORT": str(self.ports.scorer),
            "LEVERPLUS_TRAINER_PORT": str(self.ports.trainer),
            "LEVERPLUS_SELECTOR_PORT": str(self.ports.selector),
            "LEVERPLUS_SCORER_URL": ",".join(map(self.url, self.ports.scorers)),
            "LEVERPLUS_TRAINER_URL": self.url(self.ports.trainer),
            "LEVERPLUS_SELECTOR_URL": self.url(self.ports.selector),
            "REDIS_URL": redis_url,
            "PYTHONUNBUFFERED": "1",
            # A model is a local folder here; without this, transformers may ask a hub about it.
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": str(self.threads),
        }
        if self.vlm is not None:
            # The scorer refuses two VLMs; one that the launcher inherits is not the one it was told.
            chosen["LEVERPLUS_OPENAI_URL"] = ""
        if self.database_url is not None:
            chosen["DATABASE_URL"] = self.database_url
        return {**chosen, **self.variables}
