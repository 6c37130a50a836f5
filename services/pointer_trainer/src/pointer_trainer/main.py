"""Starts the trainer's API; the only reader of the environment in it."""

from __future__ import annotations

import os
import sys

from leverplus.errors import LeverPlusError
from leverplus.web import observe, read_settings, serve
from pointer_trainer.app import create_app
from pointer_trainer.settings import TrainerSettings


def main() -> None:
    settings = read_settings(TrainerSettings, os.environ)
    observe("pointer_trainer", settings)
    try:
        app = create_app(settings)
    except LeverPlusError as exc:
        sys.exit(f"error: {exc}")
    serve(app, host=settings.host, port=settings.port)
