"""The launcher's list of its processes, for the next launcher and for whoever looks: processes.json of the data folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from leverplus.errors import InvalidConfig
from leverplus.files import write_json
from leverplus.launcher.child import Child
from leverplus.launcher.process_table import group_members, has_variable, start_time, stop_group


@dataclass(frozen=True)
class ListedProcess:
    """`pid` is also its group's; `started` as `start_time` says it; `url`: where it serves, None if it does not."""

    name: str
    pid: int
    started: str | None
    url: str | None = None

    @property
    def runs(self) -> bool:
        """A pid may have been given to another program since."""
        return self.started is not None and start_time(self.pid) == self.started


def process_file(data: Path) -> Path:
    return data / "processes.json"


def write_processes(data: Path, children: Iterable[Child], urls: Mapping[str, str]) -> None:
    """`urls`: by the names of those that serve."""
    listed = [ListedProcess(child.name, child.pid, child.started, urls.get(child.name)) for child in children]
    write_json(process_file(data), [asdict(process) for process in listed])


def listed_processes(data: Path) -> list[ListedProcess]:
    """In the order in which they were started; none where no launcher has the folder. InvalidConfig for a file that is broken."""
    path = process_file(data)
    if not path.is_file():
        return []
    try:
        listed: list[dict[str, Any]] = orjson.loads(path.read_bytes())
        return [ListedProcess(entry["name"], int(entry["pid"]), entry["started"], entry.get("url")) for entry in listed]
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        reason = "not readable; stop the services of this folder by hand and delete it"
        raise InvalidConfig(field=str(path), reason=reason) from exc


def stop_orphans(data: Path) -> list[str]:
    """Stops the services that a killed launcher left in `data`; their names. The caller holds the folder's lock.

    A pid may have been given to another program since: a group is stopped only if its leader started when the file
    says, or, the leader being gone, member by member where the environment names this data folder.
    """
    mark = f"LEVERPLUS_DATA={data.resolve()}"
    stopped: list[str] = []
    for process in reversed(listed_processes(data)):
        group, now = process.pid, start_time(process.pid)
        ours = now == process.started if now is not None else any(has_variable(pid, mark) for pid in group_members(group))
        if ours and group_members(group):
            stop_group(group, limit_s=5.0)
            stopped.append(process.name)
    process_file(data).unlink(missing_ok=True)
    return stopped
