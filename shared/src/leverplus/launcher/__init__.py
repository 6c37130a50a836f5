"""The processes of one data folder: embedded broker, three services and a worker, started and stopped as one."""

from leverplus.launcher.config import Ports, StackConfig
from leverplus.launcher.ownership import OwnerLock
from leverplus.launcher.processes import Stack
from leverplus.launcher.signals import StoppedBySignal, stop_on_signals
from leverplus.launcher.valkey import EmbeddedValkey

__all__ = ["EmbeddedValkey", "OwnerLock", "Ports", "Stack", "StackConfig", "StoppedBySignal", "stop_on_signals"]
