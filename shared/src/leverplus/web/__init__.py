"""What every service is made of: an application with problem+json, probes, metrics and request ids; settings; a server."""

from leverplus.web.application import create_service, serve
from leverplus.web.query_parameters import PlainRoute, described_parameters, query_parameters
from leverplus.web.settings import read_settings

__all__ = ["PlainRoute", "create_service", "described_parameters", "query_parameters", "read_settings", "serve"]
