"""LitServe: `python lit.py <data root> <port>`."""

# The server it speaks of is not installed where types are checked.
# pyright: reportMissingImports=false, reportUntypedClassDecorator=false, reportUntypedFunctionDecorator=false
# pyright: reportUntypedBaseClass=false, reportAttributeAccessIssue=false, reportArgumentType=false

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import litserve
from chooser import BATCH, BATCH_WAIT_S, Chooser


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.choose = Chooser(Path(sys.argv[1]))

    # Without an annotation: LitServe would make a query parameter of it.
    def decode_request(self, request) -> int:  # pyright: ignore[reportMissingParameterType, reportUnknownParameterType]
        return int(request["query_id"])

    def predict(self, query_ids: list[int] | int) -> list[list[int]] | list[int]:
        # Without batches LitServe hands over what decode_request gave.
        return self.choose([query_ids])[0] if isinstance(query_ids, int) else self.choose(query_ids)

    def encode_response(self, output: list[int]) -> dict[str, Any]:
        return {"pointer": output}


if __name__ == "__main__":
    server = litserve.LitServer(Api(max_batch_size=BATCH, batch_timeout=BATCH_WAIT_S), accelerator="cpu")
    server.run(port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
