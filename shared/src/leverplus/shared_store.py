"""The store behind LEVERPLUS_SHARED, as fsspec reaches it: what it raises, in our words."""

from __future__ import annotations

import errno
import importlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from leverplus.errors import InvalidConfig, LeverPlusError, NotInstalled, Unavailable

_OPTIONS: dict[str, dict[str, Any]] = {
    # Without these a host that does not answer is waited for by the minute.
    "s3": {"config_kwargs": {"connect_timeout": 5, "read_timeout": 30, "retries": {"max_attempts": 4, "mode": "standard"}}},
    "file": {"auto_mkdir": True},
}


def check_shared_url(url: str) -> str:
    """`url` if it names a place in a store; InvalidConfig otherwise."""
    protocol, mark, place = url.partition("://")
    if not (protocol and mark and place):
        raise InvalidConfig(field="LEVERPLUS_SHARED", reason=f"{url!r} is no URL: s3://bucket/prefix, gs://bucket/prefix")
    return url


@contextmanager
def reached(url: str, root: Path) -> Generator[Any]:
    """The file system; what it raises becomes Unavailable, but for files that are there or not. `root`: the data root here."""
    try:
        fsspec = importlib.import_module("fsspec")
        protocol = url.partition("://")[0]
        # fsspec keeps it, one a process; listings are not kept, for other hosts write, too.
        yield fsspec.filesystem(protocol, use_listings_cache=False, skip_instance_cache=False, **_OPTIONS.get(protocol, {}))
    except (LeverPlusError, FileNotFoundError, FileExistsError):
        raise
    except ImportError as exc:
        reason, hint = str(exc), "install it, with gcsfs for gs://"
        raise NotInstalled(what=f"LEVERPLUS_SHARED={url}", extra="leverplus[s3]", reason=reason, hint=hint) from exc
    except Exception as exc:
        # Every kind of store has errors of its own.
        raise away(url, root, exc) from exc


def away(url: str, root: Path, exc: Exception) -> Unavailable:
    if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return Unavailable(what="disk", reason=f"{root}: {exc.strerror}", hint="free some space or see to its permissions")
    hint = "look at LEVERPLUS_SHARED, its credentials and its network; what is here already goes on being used"
    return Unavailable(what=f"the store {url}", reason=f"{type(exc).__name__}: {exc}", hint=hint)


def send(fs: Any, files: Sequence[tuple[Path | bytes, str]]) -> None:
    """Files, or what is to be in them, to their places; those on the disk side by side."""
    on_disk = [(str(file), target) for file, target in files if isinstance(file, Path)]
    if on_disk:
        fs.put([source for source, _ in on_disk], [target for _, target in on_disk])
    for file, target in files:
        if isinstance(file, bytes):
            fs.pipe_file(target, file)
