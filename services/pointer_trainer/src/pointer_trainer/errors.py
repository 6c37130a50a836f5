"""Errors of this service alone."""

from __future__ import annotations

from leverplus.errors import InvalidInput, LeverPlusError


class UploadTooLarge(InvalidInput):
    """Raised with `limit_mib`."""

    status = 413
    title = "Upload too large"
    template = "the body is larger than {limit_mib} MiB; split the file, or raise LEVERPLUS_MAX_UPLOAD_MIB"


class ShardFailed(LeverPlusError):
    """Raised with `job_id`, `shard`, `shards`, `child` and `reason`."""

    title = "Shard failed"
    template = (
        "shard {shard} of {shards} ({child}): {reason}; what is scored is kept, and the finished shards too: "
        "POST /jobs/{job_id}/resume (`leverplus jobs resume {job_id}`) goes on with the others"
    )
