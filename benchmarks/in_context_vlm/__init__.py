"""What trains the VLM of assets/in-context-vlm. `benchmarks/train_in_context_vlm.py` is its command."""

IMAGE_SIDE, PATCHES_PER_IMAGE, TOKENS_PER_IMAGE = 56, 16, 4
IGNORED = -100
"""A target that is not counted."""
