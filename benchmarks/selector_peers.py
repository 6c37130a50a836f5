"""The same choice behind other servers, and a hello-world: `python benchmarks/selector_peers.py <server> <data root> <port>`.

litserve, bentoml and ray answer `GET`/`POST` with the pointer of a query id, by the selector in torch, one query at a time, with
the embeddings in memory and the pools drawn beforehand: less than GET /select does. hello is FastAPI on uvicorn with nothing
behind it.
"""

# The servers it speaks of are not installed where types are checked.
# pyright: reportMissingImports=false, reportUntypedClassDecorator=false, reportUntypedFunctionDecorator=false
# pyright: reportUntypedBaseClass=false, reportAttributeAccessIssue=false

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from leverplus.ids import ItemId

NAME = "drawn"


class Chooser:
    """query id → pointer, with torch on one thread."""

    def __init__(self, data: Path) -> None:
        import torch

        from leverplus.checkpoints import load_checkpoint
        from leverplus.data_root import DataRoot
        from leverplus.dataset import Dataset
        from leverplus.deployments import read_deployment
        from leverplus.embeddings import Embeddings
        from leverplus.pools import PoolPolicy, Pools
        from leverplus.selector import selector_from_checkpoint

        torch.set_num_threads(1)
        root = DataRoot(data)
        folder = root.checkpoint(read_deployment(root, "production").checkpoint_id)
        _, info = load_checkpoint(folder)
        dataset = Dataset.open(root.dataset(NAME))
        embeddings = Embeddings.open(root.embeddings(NAME))
        self._model = selector_from_checkpoint(folder)
        self._vectors = torch.from_numpy(embeddings.candidate[:].copy())
        self._shots = max(info.shots)
        policy = PoolPolicy.from_json(info.pool_policy)
        pools = Pools(dataset, embeddings, policy)
        queries = dataset.split_ids("test")
        one_for_all = policy.sampler == "all"
        drawn = pools.pool(queries[0]) if one_for_all else None
        self._pools = {
            query: torch.from_numpy(pools.pool(query) if drawn is None else drawn)
            for query in queries[: 1 if one_for_all else None]
        }
        self._shared = torch.from_numpy(drawn) if drawn is not None else None

    def __call__(self, query_id: int) -> list[int]:
        pool = self._pools[ItemId(query_id)] if self._shared is None else self._shared
        chosen = self._model.select(self._vectors[query_id][None], self._vectors[pool][None], self._shots)
        return pool[chosen.positions[0]].tolist()


def hello(_: Path, port: int) -> None:
    import uvicorn
    from fastapi import FastAPI

    app = FastAPI()

    @app.get("/")
    async def root() -> dict[str, str]:
        return {"message": "Hello World"}

    uvicorn.run(app, port=port, access_log=False, log_level="warning")


def litserve(data: Path, port: int) -> None:
    import litserve

    class Api(litserve.LitAPI):
        def setup(self, device: str) -> None:
            self.choose = Chooser(data)

        def decode_request(self, request: Any) -> int:
            return int(request["query_id"])

        def predict(self, query_id: int) -> list[int]:
            return self.choose(query_id)

        def encode_response(self, output: list[int]) -> dict[str, Any]:
            return {"pointer": output}

    litserve.LitServer(Api(), accelerator="cpu").run(port=port, generate_client_file=False, log_level="warning")


def ray(data: Path, port: int) -> None:
    import time

    from fastapi import FastAPI
    from ray import serve
    from ray.serve.config import HTTPOptions

    app = FastAPI()

    @serve.deployment
    @serve.ingress(app)
    class Selector:
        def __init__(self) -> None:
            self.choose = Chooser(data)

        @app.get("/select")
        def select(self, query_id: int) -> dict[str, Any]:
            return {"pointer": self.choose(query_id)}

    serve.start(http_options=HTTPOptions(port=port))
    serve.run(Selector.bind())
    while True:
        time.sleep(1)


def bentoml(data: Path, port: int) -> None:
    os.environ["SELECTOR_DATA"] = str(data)
    folder = Path(__file__).resolve().parent
    os.execv(
        Path(sys.executable).with_name("bentoml"),
        ["bentoml", "serve", "selector_bento:Selector", "--working-dir", str(folder), "--port", str(port), "--host", "127.0.0.1"],
    )


if __name__ == "__main__":
    server, data, port = sys.argv[1:]
    {"hello": hello, "litserve": litserve, "ray": ray, "bentoml": bentoml}[server](Path(data), int(port))
