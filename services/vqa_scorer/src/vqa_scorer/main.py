"""Starts the scorer from the environment."""

from __future__ import annotations

import os
import signal
import sys

from leverplus.errors import LeverPlusError
from leverplus.web import observe, read_settings, serve
from vqa_scorer.app import create_app
from vqa_scorer.settings import ScorerSettings


def main() -> None:
    """Serves until stopped; exits with 1 and one line when the VLM cannot be loaded."""
    settings = read_settings(ScorerSettings, os.environ)
    observe("vqa_scorer", settings)
    # A bar that is drawn for a terminal is no line of a log.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    reasons: list[str] = []

    def load_failed(reason: str) -> None:
        reasons.append(reason)
        os.kill(os.getpid(), signal.SIGINT)

    try:
        app = create_app(settings, load_failed=load_failed)
    except LeverPlusError as exc:
        sys.exit(f"error: {exc}")
    try:
        serve(app, host=settings.host, port=settings.port)
    except KeyboardInterrupt:
        if not reasons:
            raise
    if reasons:
        place = f"in {settings.vlm}" if settings.vlm is not None else f"at {settings.openai_url}"
        sys.exit(f"error: the scorer with the VLM {place} cannot start: {reasons[0]}")
