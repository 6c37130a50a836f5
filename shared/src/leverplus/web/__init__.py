"""What every service is made of: an application with problem+json, probes, metrics and request ids; settings; a server."""

from leverplus.web.access import AccessSettings
from leverplus.web.application import create_service, serve
from leverplus.web.observation import ObservationSettings, observe
from leverplus.web.query_parameters import described_parameters, query_parameters
from leverplus.web.settings import read_settings, require_common_database
from leverplus.web.shortcut import Shortcut

__all__ = [
    "AccessSettings",
    "ObservationSettings",
    "Shortcut",
    "create_service",
    "described_parameters",
    "observe",
    "query_parameters",
    "read_settings",
    "require_common_database",
    "serve",
]
