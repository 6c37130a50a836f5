"""The service that `selector_peers.py bentoml` starts."""

# The servers it speaks of are not installed where types are checked.
# pyright: reportMissingImports=false, reportUntypedClassDecorator=false, reportUntypedFunctionDecorator=false
# pyright: reportUntypedBaseClass=false, reportAttributeAccessIssue=false

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import bentoml
from selector_peers import Chooser


@bentoml.service(workers=1)
class Selector:
    def __init__(self) -> None:
        self.choose = Chooser(Path(os.environ["SELECTOR_DATA"]))

    @bentoml.api(route="/select")
    def select(self, query_id: int) -> dict[str, Any]:
        return {"pointer": self.choose(query_id)}
