"""Ray Serve: `python ray_serve.py <data root> <port>`."""

# The server it speaks of is not installed where types are checked.
# pyright: reportMissingImports=false, reportUntypedClassDecorator=false, reportUntypedFunctionDecorator=false
# pyright: reportUntypedBaseClass=false, reportAttributeAccessIssue=false, reportArgumentType=false

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from chooser import BATCH, BATCH_WAIT_S, Chooser
from fastapi import FastAPI
from ray import serve
from ray.serve.config import HTTPOptions

app = FastAPI()


@serve.deployment(max_ongoing_requests=200)
@serve.ingress(app)
class Selector:
    def __init__(self, data: str) -> None:
        self.choose = Chooser(Path(data))

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=BATCH_WAIT_S)
    async def together(self, query_ids: list[int]) -> list[list[int]]:
        return self.choose(query_ids)

    @app.get("/select")
    async def select(self, query_id: int) -> dict[str, Any]:
        return {"pointer": await self.together(query_id)}


if __name__ == "__main__":
    serve.start(http_options=HTTPOptions(port=int(sys.argv[2])))
    serve.run(Selector.bind(sys.argv[1]))
    while True:
        time.sleep(1)
