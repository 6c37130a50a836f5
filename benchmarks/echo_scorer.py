"""The scorer service with the echo engine, which needs no model: for measuring, and for trying out, the service alone.

    LEVERPLUS_DATA=.leverplus LEVERPLUS_VLM=. python benchmarks/echo_scorer.py [--delay-s 0.1]

Settings are the scorer's; LEVERPLUS_VLM must name something and is not read. The delay is waited in every batch.
"""

from __future__ import annotations

import argparse
import os

from leverplus.web import observe, read_settings, serve
from vqa_scorer.app import create_app
from vqa_scorer.engines.echo import EchoEngine
from vqa_scorer.settings import ScorerSettings

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay-s", type=float, default=0.0)
    engine = EchoEngine(record=False, delay_s=parser.parse_args().delay_s)
    settings = read_settings(ScorerSettings, os.environ)
    observe("vqa_scorer", settings)
    serve(create_app(settings, engine), host=settings.host, port=settings.port)
