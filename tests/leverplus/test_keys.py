"""The file of keys: what a line holds, whose key it is, and changes while a service runs."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from leverplus import keys
from leverplus.errors import InvalidConfig
from leverplus.keys import KeyFile, new_key, read_keys

DIGEST = "ab" * 32


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves both clocks on by so many seconds."""
    now = [1_000.0]

    def advance(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(keys.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(keys.time, "time", lambda: 1_800_000_000.0 + now[0] - 1_000.0)
    return advance


def test_a_new_key_is_found_by_its_line_and_the_line_does_not_tell_it(tmp_path: Path):
    key, line = new_key("ci", "write", expires=date(2040, 1, 31), rate=50)
    secret = key.removeprefix("leverplus_")
    assert len(secret) == 43
    assert line == f"ci write {hashlib.sha256(key.encode()).hexdigest()} expires=2040-01-31 rate=50"
    (tmp_path / "keys").write_text(f"# who asks\n\n{line}  # the nightly run\n")
    found = KeyFile(tmp_path / "keys").find(key.encode())
    assert found is not None
    assert (found.name, found.role, found.rate) == ("ci", "write", 50.0)
    assert [found.may(role) for role in ("read", "write", "admin")] == [True, True, False]
    assert new_key("ci", "write")[0] != key


@pytest.mark.parametrize(
    "presented", [b"", b"leverplus_", b"leverplus_" + b"a" * 43, b"x" * 100_000, b"\xff\x00", "leverplus_ä".encode()]
)
def test_what_is_no_key_is_nobodys(tmp_path: Path, presented: bytes):
    (tmp_path / "keys").write_text(new_key("ci", "read")[1])
    assert KeyFile(tmp_path / "keys").find(presented) is None


def test_a_short_password_is_no_key_even_with_its_hash_in_the_file(tmp_path: Path):
    (tmp_path / "keys").write_text(f"me admin {hashlib.sha256(b'secret').hexdigest()}")
    assert KeyFile(tmp_path / "keys").find(b"secret") is None


def test_a_key_is_good_to_the_end_of_its_last_day(tmp_path: Path, clock: Callable[[float], None]):
    # 1,800,000,000 is 2027-01-15, 08:00 UTC: 16 hours before the day ends.
    key, line = new_key("ci", "read", expires=date(2027, 1, 15))
    (tmp_path / "keys").write_text(line)
    file = KeyFile(tmp_path / "keys")
    clock(16 * 3600 - 1)
    assert file.find(key.encode()) is not None
    clock(1)
    assert file.find(key.encode()) is None


def test_keys_come_and_go_while_the_service_runs(
    tmp_path: Path, clock: Callable[[float], None], caplog: pytest.LogCaptureFixture
):
    path = tmp_path / "keys"
    first, first_line = new_key("first", "read")
    second, second_line = new_key("second", "read")
    path.write_text(first_line)
    file = KeyFile(path)
    path.write_text(f"{second_line}\n# the first one was lost\n")
    assert file.find(second.encode()) is None, "the file is looked at once a second"
    clock(1.1)
    assert file.find(second.encode()) is not None
    assert file.find(first.encode()) is None
    with caplog.at_level(logging.ERROR):
        path.write_text(f"{first}\n")
        clock(1.1)
        assert file.find(second.encode()) is not None, "a broken file changes nothing"
    assert "the keys stay as they were" in caplog.text
    assert first not in caplog.text, "a key that was put there by mistake is not logged"
    path.unlink()
    clock(1.1)
    assert file.find(second.encode()) is not None


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["ci read"], "line 1: write `name role sha256`"),
        (["", f"ci root {DIGEST}"], "line 2: the role of ci is none of read, write, admin"),
        (["ci read " + "AB" * 32], "is no SHA-256"),
        ([f"c/i read {DIGEST}"], "the name is made of"),
        ([f"ci read {DIGEST}", "ci read " + "cd" * 32], "line 2: the name ci is there twice"),
        ([f"ci read {DIGEST}", f"cd read {DIGEST}"], "that of another line"),
        ([f"ci read {DIGEST} expires=tomorrow"], "write expires=2027-01-31"),
        ([f"ci read {DIGEST} expires=9999-12-31"], "write expires=2027-01-31"),
        ([f"ci read {DIGEST} rate=nan"], "above 0"),
        ([f"ci read {DIGEST} rate=0"], "above 0"),
        ([f"ci read {DIGEST} rate=1 rate=2"], "once each"),
        ([f"ci read {DIGEST} admin"], "only expires= and rate="),
    ],
)
def test_a_broken_line_is_named(lines: list[str], reason: str):
    with pytest.raises(InvalidConfig) as error:
        read_keys(lines, "keys")
    assert reason in str(error.value)
    assert DIGEST not in str(error.value)


def test_a_file_that_lets_nobody_in_is_refused(tmp_path: Path):
    for content in (b"# nobody\n", b"\xff", b"#" * (2**20 + 1)):
        (tmp_path / "keys").write_bytes(content)
        with pytest.raises(InvalidConfig, match="LEVERPLUS_KEYS"):
            KeyFile(tmp_path / "keys")
    with pytest.raises(InvalidConfig, match="cannot be read"):
        KeyFile(tmp_path / "nowhere")
    with pytest.raises(InvalidConfig, match="the name is made of"):
        new_key("two/words", "read")
