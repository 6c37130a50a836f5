"""Embeddings of a dataset's items: the folder format. Encoders and the reference's .pt pair are modules of their own.

`leverplus.embeddings.encoders` and `leverplus.embeddings.reference` need torch; this module does not.
"""

from leverplus.embeddings.folder import Block, EmbeddingManifest, Embeddings, block_of, read_manifest, require_block

__all__ = ["Block", "EmbeddingManifest", "Embeddings", "block_of", "read_manifest", "require_block"]
