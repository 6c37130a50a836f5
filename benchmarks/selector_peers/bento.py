"""BentoML: `python bento.py <data root> <port>`."""

# The server it speaks of is not installed where types are checked.
# pyright: reportMissingImports=false, reportUntypedClassDecorator=false, reportUntypedFunctionDecorator=false
# pyright: reportUntypedBaseClass=false, reportAttributeAccessIssue=false, reportArgumentType=false

from __future__ import annotations

import os
import sys
from pathlib import Path

import bentoml
from chooser import BATCH, Chooser


@bentoml.service(workers=1)
class Selector:
    def __init__(self) -> None:
        self.choose = Chooser(Path(os.environ["SELECTOR_DATA"]))

    @bentoml.api(route="/select", batchable=True, max_batch_size=BATCH, max_latency_ms=60_000)
    def select(self, query_ids: list[int]) -> list[list[int]]:
        return self.choose(query_ids)


if __name__ == "__main__":
    os.environ["SELECTOR_DATA"] = sys.argv[1]
    program = str(Path(sys.executable).with_name("bentoml"))
    place = ["--working-dir", str(Path(__file__).parent), "--host", "127.0.0.1", "--port", sys.argv[2]]
    os.execv(program, [program, "serve", "bento:Selector", *place])
