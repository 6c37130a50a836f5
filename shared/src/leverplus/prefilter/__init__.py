"""An approximate index in front of a selector whose pool is a whole split: made offline, and used only when asked for by name."""

from leverplus.prefilter.index import Prefilter
from leverplus.prefilter.manifest import Measured, PrefilterManifest, Sources, list_prefilters, read_prefilter_manifest

__all__ = ["Measured", "Prefilter", "PrefilterManifest", "Sources", "list_prefilters", "read_prefilter_manifest"]
