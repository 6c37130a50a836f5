"""Errors of this service alone."""

from __future__ import annotations

from leverplus.errors import InvalidInput


class UploadTooLarge(InvalidInput):
    """Raised with `limit_mib`."""

    status = 413
    title = "Upload too large"
    template = "the body is larger than {limit_mib} MiB; split the file, or raise LEVERPLUS_MAX_UPLOAD_MIB"
