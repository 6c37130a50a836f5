"""What the routes work with, made once by create_app."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from leverplus.data_root import DataRoot
from leverplus.store import JobStore
from pointer_trainer.broker import Broker
from pointer_trainer.settings import TrainerSettings


@dataclass(frozen=True)
class TrainerState:
    settings: TrainerSettings
    data_root: DataRoot
    jobs: JobStore
    broker: Broker


def trainer_state(request: Request) -> TrainerState:
    return request.app.state.trainer


State = Annotated[TrainerState, Depends(trainer_state)]
