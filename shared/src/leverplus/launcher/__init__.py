"""The processes of one data folder: embedded broker, three services and a worker, started and stopped as one."""

from leverplus.launcher.config import Ports, StackConfig, require_free_port
from leverplus.launcher.gpus import scorer_devices
from leverplus.launcher.ownership import OwnerLock
from leverplus.launcher.processes import Stack
from leverplus.launcher.signals import StoppedBySignal, stop_on_signals
from leverplus.launcher.valkey import EmbeddedValkey

__all__ = [
    "EmbeddedValkey",
    "OwnerLock",
    "Ports",
    "Stack",
    "StackConfig",
    "StoppedBySignal",
    "require_free_port",
    "scorer_devices",
    "stop_on_signals",
]
