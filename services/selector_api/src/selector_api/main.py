"""`python -m selector_api`: the only place that reads the environment."""

from __future__ import annotations

import os
import sys

from leverplus.errors import LeverPlusError
from leverplus.web import observe, read_settings, serve
from selector_api.settings import SelectorSettings


def main() -> None:
    settings = read_settings(SelectorSettings, os.environ)
    observe("selector_api", settings)
    # One query attends to 64 candidates: more BLAS threads only add jitter. numpy reads this when it is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(settings.threads))
    from selector_api.app import create_app

    try:
        app = create_app(settings)
    except LeverPlusError as exc:
        sys.exit(f"error: {exc}")
    serve(app, host=settings.host, port=settings.port)
