"""The images of a prompt as data URLs, looked into before they are sent."""

from __future__ import annotations

from pathlib import Path

from leverplus import data_urls
from leverplus.images import opened


def data_url(path: Path) -> str:
    """As `leverplus.data_urls` has it; InvalidInput also for a file whose header cannot be read, or says that it is too large."""
    with opened(path):
        return data_urls.data_url(path)
