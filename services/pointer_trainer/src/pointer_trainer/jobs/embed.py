"""Embedding a dataset."""

from __future__ import annotations

from typing import Any

from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset
from leverplus.embeddings import Embeddings
from leverplus.embeddings.encoders import embed_dataset
from leverplus.errors import Conflict, FingerprintMismatch, InvalidEmbeddings, NotFound
from pointer_trainer.context import JobContext
from pointer_trainer.requests import EmbeddingsRequest


def embed(context: JobContext) -> dict[str, Any]:
    """Embeds every item. What is embedded already, of this very dataset, is kept unless `overwrite` is set."""
    request = EmbeddingsRequest.model_validate(context.config)
    dataset = Dataset.open(context.data_root.dataset(request.dataset))
    if request.overwrite:
        _require_unshared(context.data_root, request.dataset)
    embeddings = None if request.overwrite else _existing(context, dataset)
    is_kept = embeddings is not None
    if embeddings is not None:
        context.step("embed", len(embeddings), len(embeddings))
    else:
        embeddings = embed_dataset(
            dataset, batch_size=request.batch_size, progress=lambda done, total: context.step("embed", done, total)
        )
        context.check()
        embeddings.save(context.data_root.embeddings(request.dataset), overwrite=True, fence=context.fence)
    context.data_root.publish(context.data_root.embeddings(request.dataset))
    manifest = embeddings.manifest
    return {
        "dataset": request.dataset,
        "items": manifest.count,
        "d_model": manifest.d_model,
        "sha256": manifest.sha256,
        "kept": is_kept,
    }


def _require_unshared(root: DataRoot, dataset: str) -> None:
    """Conflict, before an hour's work, where other hosts have embeddings that would no longer be these."""
    if root.shared is not None and dataset in root.shared.names(root.path / "embeddings"):
        raise Conflict(f"embeddings of {dataset} are shared, and what is shared is never changed: import it under another name")


def _existing(context: JobContext, dataset: Dataset) -> Embeddings | None:
    try:
        return Embeddings.open(context.data_root.embeddings(dataset.name), dataset)
    except NotFound:
        return None
    except (FingerprintMismatch, InvalidEmbeddings) as exc:
        context.logger.info("embedding again: %s", exc)
        return None
