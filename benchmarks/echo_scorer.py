"""The scorer service with the echo engine, which needs no model: for measuring, and for trying out, the service alone.

    LEVERPLUS_DATA=.leverplus LEVERPLUS_VLM=. python benchmarks/echo_scorer.py [--delay-s 0.1] [--batch-size 32] [--record FILE]

Settings are the scorer's; LEVERPLUS_VLM must name something and is not read. The delay is waited in every batch. The record gets
a line a batch, on disk before it is answered: process, time, and of every prompt its items as [image's path, question], the query
last.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from leverplus.web import observe, read_settings, serve
from vqa_scorer.app import create_app
from vqa_scorer.engines import ScoringPrompt
from vqa_scorer.engines.echo import EchoEngine
from vqa_scorer.settings import ScorerSettings


class WritingEngine(EchoEngine):
    """Writes down what it is asked for."""

    def __init__(self, path: Path, *, delay_s: float, batch_size: int) -> None:
        super().__init__(record=False, delay_s=delay_s, batch_size=batch_size)
        self._path = path

    def generate(self, prompts: Sequence[ScoringPrompt]) -> list[str]:
        shown = [[[str(shot.image), shot.question] for shot in (*prompt.demonstrations, prompt.query)] for prompt in prompts]
        with self._path.open("a") as stream:
            stream.write(json.dumps({"pid": os.getpid(), "at": time.time(), "prompts": shown}) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        return super().generate(prompts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay-s", type=float, default=0.0)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    told = {"delay_s": arguments.delay_s, "batch_size": arguments.batch_size}
    engine = EchoEngine(record=False, **told) if arguments.record is None else WritingEngine(arguments.record, **told)
    settings = read_settings(ScorerSettings, os.environ)
    observe("vqa_scorer", settings)
    serve(create_app(settings, engine), host=settings.host, port=settings.port)
