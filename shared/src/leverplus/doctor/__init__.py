"""What is wrong with a set-up: the installation, its settings, what it reaches, what lies in its data folder."""

from leverplus.doctor.data import data_findings
from leverplus.doctor.finding import Finding
from leverplus.doctor.installation import installation_findings
from leverplus.doctor.reachable import reachable_findings
from leverplus.doctor.services import service_findings
from leverplus.doctor.settings import settings_findings

__all__ = [
    "Finding",
    "data_findings",
    "installation_findings",
    "reachable_findings",
    "service_findings",
    "settings_findings",
]
