"""API keys: the file that names them, and whose a key is.

A line of the file is `name role sha256`, then, where wanted, `expires=2027-01-31` and `rate=50` (requests a second); `#` begins a
comment. Keys are 256 random bits of our making, and nothing else is taken for one: there is nothing to guess, so that a plain
SHA-256 keeps them as safe as a slow hash would, which every request had to wait for.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import os
import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Literal, TypeGuard, get_args

from leverplus.errors import InvalidConfig, shorten

logger = logging.getLogger(__name__)

Role = Literal["read", "write", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
"""Each may do what those before it may."""

_PREFIX = "leverplus_"
_KEY = re.compile(rb"leverplus_[A-Za-z0-9_-]{43}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OF_NAMES = "made of letters, digits, '.', '_' and '-', at most 64, the first a letter or digit"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LARGEST_FILE_BYTES = 2**20
_LOOKED_AT_EVERY_S = 1.0


@dataclass(frozen=True)
class Key:
    """`expires_at`: seconds since the epoch. `rate`: requests a second; None leaves it to the service."""

    name: str
    role: Role
    digest: bytes
    expires_at: float | None = None
    rate: float | None = None

    def may(self, role: Role) -> bool:
        return ROLES.index(self.role) >= ROLES.index(role)


def new_key(name: str, role: Role, *, expires: date | None = None, rate: float | None = None) -> tuple[str, str]:
    """A new key, and its line for the file, which does not tell the key. InvalidConfig for what a line cannot hold."""
    if not _NAME.fullmatch(name):
        raise InvalidConfig(field="name", reason=f"{name!r}: the name is {_OF_NAMES}")
    key = _PREFIX + secrets.token_urlsafe(32)
    line = f"{name} {role} {hashlib.sha256(key.encode()).hexdigest()}"
    line += f" expires={expires.isoformat()}" if expires is not None else ""
    line += f" rate={rate:g}" if rate is not None else ""
    read_keys([line], "the new line")
    return key, line


def read_keys(lines: Iterable[str], source: str) -> list[Key]:
    """InvalidConfig naming source and line; what stands in the line is not repeated, for it may be a key put there by mistake."""
    keys: dict[str, Key] = {}
    digests: set[bytes] = set()
    for number, line in enumerate(lines, start=1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        place = f"{source}, line {number}"
        if len(fields) < 3:
            raise InvalidConfig(field=place, reason="write `name role sha256`; `leverplus keys new` prints such a line")
        name, role, digest, *options = fields
        if not _NAME.fullmatch(name):
            raise InvalidConfig(field=place, reason=f"the name is {_OF_NAMES}")
        if not _is_role(role):
            raise InvalidConfig(field=place, reason=f"the role of {name} is none of {', '.join(ROLES)}")
        if not _SHA256.fullmatch(digest):
            raise InvalidConfig(field=place, reason=f"the third field of {name} is no SHA-256 in lower-case hexadecimal digits")
        if name in keys:
            raise InvalidConfig(field=place, reason=f"the name {name} is there twice; each key has a name of its own")
        key = Key(name, role, bytes.fromhex(digest), *_options(options, place))
        if key.digest in digests:
            raise InvalidConfig(field=place, reason=f"the key of {name} is that of another line; make a new one")
        keys[name] = key
        digests.add(key.digest)
    return list(keys.values())


def _is_role(text: str) -> TypeGuard[Role]:
    return text in ROLES


def _options(options: list[str], place: str) -> tuple[float | None, float | None]:
    """When the key expires and its rate."""
    given = {name: value for name, _, value in (option.partition("=") for option in options)}
    if len(given) < len(options) or not set(given) <= {"expires", "rate"}:
        raise InvalidConfig(field=place, reason="after the three fields only expires= and rate= may stand, once each")
    expires_at: float | None = None
    rate: float | None = None
    try:
        if "expires" in given:
            # It is good to the end of that day, wherever on Earth its owner is told so.
            day = datetime.combine(date.fromisoformat(given["expires"]), datetime.min.time(), UTC)
            expires_at = (day + timedelta(days=1)).timestamp()
        if "rate" in given:
            rate = float(given["rate"])
    except (ValueError, OverflowError) as exc:
        raise InvalidConfig(field=place, reason="write expires=2027-01-31 and rate=50") from exc
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise InvalidConfig(field=place, reason="rate is a number of requests a second, above 0")
    return expires_at, rate


class KeyFile:
    """The keys of a file, read again when it changes. For one thread.

    A file that can no longer be read leaves the keys as they were, and is logged: a slip of the editor locks nobody out, and an
    operator who takes a key away sees whether that was understood.
    """

    def __init__(self, path: Path) -> None:
        """InvalidConfig where the file cannot be read, or names no key: nobody could ask for anything."""
        self._path = path
        self._stamp = self._seen()
        self._keys = self._read()
        self._next_look = time.monotonic() + _LOOKED_AT_EVERY_S

    def find(self, presented: bytes) -> Key | None:
        """Whose key that is; None where it is no one's, or has expired."""
        if time.monotonic() >= self._next_look:
            self._look()
        if _KEY.fullmatch(presented) is None:
            return None
        digest = hashlib.sha256(presented).digest()
        # The time to find the place tells at most the first bytes of a hash, of which no key can be made; the whole hash is
        # compared in constant time.
        key = self._keys.get(digest[:8])
        if key is None or not hmac.compare_digest(key.digest, digest):
            return None
        return None if key.expires_at is not None and time.time() >= key.expires_at else key

    def _look(self) -> None:
        self._next_look = time.monotonic() + _LOOKED_AT_EVERY_S
        stamp = self._seen()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = self._read()
            logger.info("%s: %d keys", self._path, len(self._keys))
        except InvalidConfig as exc:
            logger.error("the keys stay as they were: %s", exc)

    def _seen(self) -> tuple[int, int, int] | None:
        try:
            status = os.stat(self._path)  # noqa: PTH116
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> dict[bytes, Key]:
        try:
            with self._path.open("rb") as stream:
                content = stream.read(_LARGEST_FILE_BYTES + 1)
            text = content.decode()
        except OSError as exc:
            raise InvalidConfig(field="LEVERPLUS_KEYS", reason=f"{self._path} cannot be read: {exc.strerror}") from exc
        except UnicodeDecodeError as exc:
            raise InvalidConfig(field="LEVERPLUS_KEYS", reason=f"{self._path} is no text") from exc
        if len(content) > _LARGEST_FILE_BYTES:
            raise InvalidConfig(field="LEVERPLUS_KEYS", reason=f"{self._path} has more than {_LARGEST_FILE_BYTES} bytes")
        keys = read_keys(text.splitlines(), shorten(str(self._path)))
        if not keys:
            raise InvalidConfig(
                field="LEVERPLUS_KEYS", reason=f"{self._path} names no key; `leverplus keys new NAME --role admin` makes one"
            )
        return {key.digest[:8]: key for key in keys}
