"""Typed clients of scorer and trainer; `leverplus.selector_client` has the selector's.

A problem+json answer is raised as the LeverPlusError that it names.
"""

from leverplus.client.attempts import ONCE, PATIENCE
from leverplus.client.problems import raise_problem
from leverplus.client.scorer import ScorerClient, ScoreStream
from leverplus.client.service import ServiceClient
from leverplus.client.trainer import TrainerClient

__all__ = ["ONCE", "PATIENCE", "ScoreStream", "ScorerClient", "ServiceClient", "TrainerClient", "raise_problem"]
