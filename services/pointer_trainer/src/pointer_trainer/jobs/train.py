"""Training a selector on RL data."""

from __future__ import annotations

from typing import Any

import torch

from leverplus import rl_data
from leverplus.checkpoints import read_info
from leverplus.dataset import Dataset
from leverplus.embeddings import Embeddings
from leverplus.errors import InvalidRlData
from leverplus.files import file_sha256, remove_folder
from leverplus.fingerprint import Fingerprint
from leverplus.pools import Pools
from pointer_trainer.context import JobContext
from pointer_trainer.metrics_writers import open_writers
from pointer_trainer.phases import SUFFIXES
from pointer_trainer.pool_policy import pool_policy
from pointer_trainer.requests import TrainRequest
from pointer_trainer.rl_files import open_heads
from pointer_trainer.sharing import StateSharer
from pointer_trainer.train_config import read_train_config
from pointer_trainer.training import train


def train_selector(context: JobContext) -> dict[str, Any]:
    """Trains and saves checkpoint ckpt-<job's suffix>, and those of phases around it as ckpt-<job's suffix>-<phase>.

    A run that finds the first saved by an earlier run of the job, which wrote it last, returns what is there.
    """
    torch.set_num_threads(context.threads)
    request = TrainRequest.model_validate(context.config)
    root = context.data_root
    checkpoint_id = f"ckpt-{context.suffix}"
    folders = [root.checkpoint(f"{checkpoint_id}{suffix}") for suffix in SUFFIXES]
    if not folders[0].exists():
        # Left by a run of this job that ended between its checkpoints.
        for folder in folders[1:]:
            context.fence()
            remove_folder(folder)
        fingerprint = open_heads(root, request.rl_data)
        if fingerprint.dataset is None:
            raise InvalidRlData(file=request.rl_data[0], query=None, field="_meta", reason="names no dataset; upload it again")
        dataset = Dataset.open(root.dataset(fingerprint.dataset["name"]))
        fingerprint.require_same(Fingerprint(dataset=dataset.fingerprint()), subject="the dataset", parts=("dataset",))
        embeddings = Embeddings.open(root.embeddings(dataset.name), dataset)
        paths = [root.rl_data(rl_data_id) for rl_data_id in request.rl_data]
        data = [rl_data.read(path, dataset) for path in paths]
        policy = pool_policy(data, dataset)
        pools = Fingerprint(pool=Pools(dataset, embeddings, policy).fingerprint())
        fingerprint.require_same(pools, subject="the dataset's embeddings", parts=("pool",))
        config = read_train_config(request.config)
        run = (context.run_folder, context.mlflow_uri, context.logger)
        sharer = StateSharer(context)
        with open_writers(context.job_id, config.model_dump(mode="json"), *run, further=[sharer]) as watchers:
            train(
                config,
                data,
                embeddings,
                dataset=dataset,
                pool_policy=policy,
                rl_data_refs=[{"id": path.stem, "sha256": file_sha256(path)} for path in paths],
                checkpoint_folder=root.checkpoint(checkpoint_id),
                run_folder=context.run_folder,
                progress=context.progress,
                should_stop=context.should_stop,
                logger=context.logger,
                run=context.run,
                fence=context.fence,
                watchers=watchers,
            )
    infos = [read_info(folder) for folder in folders if folder.exists()]
    recommended = next((info for info in infos if info.metrics.get("recommended")), infos[0])
    metrics = dict(recommended.metrics)
    recommendation = metrics.pop("recommendation", None)
    return {
        "checkpoint_id": recommended.checkpoint_id,
        "checkpoints": {info.metrics["phase"]: info.checkpoint_id for info in infos},
        "recommendation": recommendation,
        "metrics": metrics,
        "run_folder": str(context.run_folder),
        "curves": sorted(path.name for path in context.run_folder.glob("*.png")),
    }
