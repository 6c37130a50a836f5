"""Opening the database, migrated to the newest schema."""

from __future__ import annotations

import fcntl
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError

from leverplus.errors import InvalidConfig, Unavailable

_MIGRATION_LOCK = 0x6C706C7573
"""Key of PostgreSQL's advisory lock: any number that nothing else in the database uses."""
_BUSY_TIMEOUT_S = 30
_IDLE_TRANSACTION_S = 10
_OPTIONS: dict[str, dict[str, Any]] = {
    "sqlite": {},
    # Every statement is to see what others have committed, whatever the server's default.
    "postgresql": {"pool_pre_ping": True, "isolation_level": "READ COMMITTED"},
}


def open_store(url: str) -> Engine:
    """An engine on `url` (sqlite:///… or postgresql+psycopg://…), migrated to head; several processes may start at once.

    Raises InvalidConfig for an URL that names no such database, Unavailable when the database does not answer.
    """
    parsed = parsed_url(url)
    dialect = parsed.get_backend_name()
    shown = parsed.render_as_string(hide_password=True)
    try:
        if dialect == "sqlite" and parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed, **_OPTIONS[dialect])
    except OSError as exc:
        raise _not_writable(shown, exc) from exc
    except ModuleNotFoundError as exc:
        reason = f"{shown} needs the package {exc.name!r}; `pip install 'leverplus[postgres]'` brings psycopg"
        raise InvalidConfig(field="DATABASE_URL", reason=reason) from exc
    event.listen(engine, "connect", _configure_sqlite if dialect == "sqlite" else _configure_postgresql)
    try:
        with _file_lock(engine), engine.connect() as connection, _advisory_lock(connection):
            migrate(connection)
    except OperationalError as exc:
        engine.dispose()
        hint = "check that its folder can be written and who else uses it" if dialect == "sqlite" else "check DATABASE_URL"
        raise Unavailable(what="database", reason=f"{shown}: {exc.orig}", hint=hint) from exc
    except DatabaseError as exc:
        engine.dispose()
        hint = "put back a copy, or move it away: scores and jobs are then made anew"
        raise Unavailable(what="database", reason=f"{shown}: {exc.orig}", hint=hint) from exc
    except OSError as exc:
        engine.dispose()
        raise _not_writable(shown, exc) from exc
    return engine


def parsed_url(url: str) -> URL:
    """With the driver that we use; InvalidConfig for one that names no SQLite and no PostgreSQL."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as exc:
        raise InvalidConfig(field="DATABASE_URL", reason="not a database URL; write sqlite:///path or postgresql://…") from exc
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    if (dialect := parsed.get_backend_name()) not in ("sqlite", "postgresql"):
        raise InvalidConfig(field="DATABASE_URL", reason=f"{dialect!r} is not supported; use sqlite or postgresql")
    return parsed


def known_revisions() -> list[str]:
    """Of the schema, the newest first."""
    return [script.revision for script in ScriptDirectory.from_config(_alembic()).walk_revisions()]


def _not_writable(shown: str, error: OSError) -> Unavailable:
    hint = "check that its folder can be written"
    return Unavailable(what="database", reason=f"{shown}: {error.filename}: {error.strerror}", hint=hint)


def migrate(connection: Connection) -> None:
    """Runs the migrations up to head on `connection`."""
    config = _alembic()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _alembic() -> Config:
    config = Config()
    # Alembic reads its options as a ConfigParser does, to whom % is the start of a name.
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


def _configure_sqlite(connection: Any, _record: Any) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={_BUSY_TIMEOUT_S * 1000}", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _configure_postgresql(connection: Any, _record: Any) -> None:
    # A process that is gone with its machine, or stopped, would hold the rows of its open transaction for hours.
    connection.execute(f"SET idle_in_transaction_session_timeout = '{_IDLE_TRANSACTION_S}s'")
    connection.commit()


@contextmanager
def _advisory_lock(connection: Connection) -> Generator[None]:
    """On PostgreSQL only one process at a time migrates; the others wait, then find nothing to do. The lock goes with the
    transaction: given back before the new tables are committed, it would let the next one make them again."""
    if connection.dialect.name != "postgresql":
        yield
        return
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
    yield
    connection.commit()


@contextmanager
def _file_lock(engine: Engine) -> Generator[None]:
    """The same on SQLite. Taken before connecting: two first connections that both ask for WAL may find the file locked."""
    database = engine.url.database
    if engine.dialect.name != "sqlite" or not database or database == ":memory:":
        yield
        return
    with Path(f"{database}.migration-lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
