"""The whole main job on data where the choice of demonstrations decides, through the real services: `leverplus demo`."""

from leverplus.demo.config import DemoConfig
from leverplus.demo.run import run_demo

__all__ = ["DemoConfig", "run_demo"]
