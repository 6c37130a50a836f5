"""Vectors of queries outside a dataset, as `embed_dataset` makes those of its items."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
from PIL import Image

from leverplus.embeddings.encoders import ImageEncoder, QuestionEncoder, named_encoder, one_thread
from leverplus.embeddings.folder import EmbeddingManifest, FloatMatrix
from leverplus.embeddings.unseen import UnseenQuery
from leverplus.errors import InvalidConfig, InvalidInput
from leverplus.fingerprint import Fingerprint
from leverplus.images import read_image

_BATCH = 32


class QueryEncoder:
    """Both encoders, loaded; about 150 MB."""

    def __init__(self) -> None:
        self._image = ImageEncoder()
        self._question = QuestionEncoder()

    def encode(self, queries: Sequence[UnseenQuery], manifest: EmbeddingManifest) -> FloatMatrix:
        """[n, d] in the blocks of `manifest`, on one CPU thread.

        FingerprintMismatch naming each field and both values where the manifest's vectors are of other encoders than those here;
        InvalidInput, naming the query, for an image that is missing or cannot be read.
        """
        blocks = [block.name for block in manifest.blocks]
        self._require_same(blocks, manifest)
        columns: list[FloatMatrix] = []
        with one_thread():
            for name in blocks:
                parts = [queries[start : start + _BATCH] for start in range(0, len(queries), _BATCH)]
                if name == "image":
                    columns.append(np.concatenate([self._image.encode(_images(part)) for part in parts]))
                else:
                    columns.append(np.concatenate([self._question.encode([query.question for query in part]) for part in parts]))
        return np.concatenate(columns, axis=1)

    def _require_same(self, blocks: Sequence[str], manifest: EmbeddingManifest) -> None:
        identities = {"image": self._image.identity, "question": self._question.identity}
        own = named_encoder({name: identities[name] for name in blocks if name in identities})
        expected = Fingerprint(pool={"embeddings": {"encoder": dict(manifest.encoder)}})
        found = Fingerprint(pool={"embeddings": {"encoder": own}})
        expected.require_same(found, subject="a vector by the encoder that is installed here, for these embeddings,")
        if unknown := sorted(set(blocks) - set(identities)):
            raise InvalidConfig(field="embeddings.blocks", reason=f"{unknown[0]!r} is a block that no encoder here makes")


def _images(queries: Sequence[UnseenQuery]) -> Generator[Image.Image]:
    for query in queries:
        if query.image is None:
            raise InvalidInput(f"{query.name}: the embeddings have an image block, and no image was given; send it too")
        try:
            yield read_image(query.image)
        except InvalidInput as exc:
            raise InvalidInput(f"{query.name}: {exc.detail}", **exc.context) from exc
