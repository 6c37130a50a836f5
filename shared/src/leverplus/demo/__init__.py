"""The whole main job on a cut of easy-vqa, through the real services: `leverplus demo`."""

from leverplus.demo.config import DemoConfig
from leverplus.demo.run import run_demo

__all__ = ["DemoConfig", "run_demo"]
