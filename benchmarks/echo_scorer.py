"""The scorer service with the echo engine, which needs no model: for measuring, and for trying out, the service alone.

    LEVERPLUS_DATA=.leverplus LEVERPLUS_VLM=. python benchmarks/echo_scorer.py

Settings are the scorer's; LEVERPLUS_VLM must name something and is not read.
"""

from __future__ import annotations

import os

from leverplus.web import read_settings, serve
from vqa_scorer.app import create_app
from vqa_scorer.engines.echo import EchoEngine
from vqa_scorer.settings import ScorerSettings

if __name__ == "__main__":
    settings = read_settings(ScorerSettings, os.environ)
    serve(create_app(settings, EchoEngine(record=False)), host=settings.host, port=settings.port)
