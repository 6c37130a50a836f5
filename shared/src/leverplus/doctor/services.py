"""Services that run: those of the data folder's own launcher, wherever they listen, and those that the environment names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from leverplus.client import ONCE, ScorerClient, ServiceClient, TrainerClient
from leverplus.doctor.finding import Finding, Notable, checked
from leverplus.errors import Conflict, LeverPlusError, Unavailable
from leverplus.launcher.process_file import ListedProcess, listed_processes, process_file
from leverplus.selector_client import SelectorClient

_CLIENTS: dict[str, type[ServiceClient]] = {each.service: each for each in (ScorerClient, TrainerClient, SelectorClient)}
_VARIABLES = {
    "LEVERPLUS_SCORER_URL": ScorerClient,
    "LEVERPLUS_TRAINER_URL": TrainerClient,
    "LEVERPLUS_SELECTOR_URL": SelectorClient,
}
_LIMIT_S = 3.0


def service_findings(environ: Mapping[str, str], data: Path) -> Iterator[Finding]:
    """A line for each process of the launcher, and for each variable that is set."""
    listed: list[ListedProcess] = []
    yield checked("launcher", lambda: _launcher(data, listed))
    for process in listed:
        yield checked(process.name, lambda process=process: _process(process))
    for variable, kind in _VARIABLES.items():
        urls = [url.strip() for url in environ.get(variable, "").split(",") if url.strip()]
        for url in urls:
            yield checked(variable, lambda kind=kind, url=url: answers(kind, url))


def _launcher(data: Path, listed: list[ListedProcess]) -> str:
    """Fills `listed`."""
    listed += listed_processes(data)
    if not listed:
        return f"`leverplus up` does not run on {data}"
    if not any(process.runs for process in listed):
        listed.clear()
        raise Notable(f"{process_file(data)} is of a launcher that was killed; the next `leverplus up` does away with it")
    return f"`leverplus up` runs on {data}"


def _process(process: ListedProcess) -> str:
    if not process.runs:
        hint = "`leverplus up` starts it again, or has ended"
        raise Unavailable(what=process.name, reason=f"its process {process.pid} has ended", hint=hint)
    if process.url is None:
        return f"process {process.pid} runs"
    return answers(_CLIENTS[process.name.partition("-")[0]], process.url)


def answers(kind: type[ServiceClient], url: str) -> str:
    """That this service, and no other, answers there; Notable where it is not ready."""
    with kind(url, timeout_s=_LIMIT_S, retry=ONCE) as client:
        found = client.name()
        if found != kind.service:
            raise Conflict(f"{url} is answered by {found or 'another program'}, not by {kind.service}; correct the address")
        try:
            client.ready()
        except LeverPlusError as exc:
            raise Notable(f"{url} answers, and is not ready: {exc}") from exc
    return f"{url} is ready"
