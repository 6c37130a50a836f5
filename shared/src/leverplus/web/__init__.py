"""What every service is made of: an application with problem+json, probes, metrics and request ids; settings; a server."""

from leverplus.web.application import create_service, serve
from leverplus.web.settings import read_settings

__all__ = ["create_service", "read_settings", "serve"]
