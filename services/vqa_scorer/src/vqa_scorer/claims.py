"""Which of several scorers on one database makes which score.

A batch's keys are claimed before the engine is asked. Claims expire, so that those of a scorer that was killed do not stand
in the others' way for long; while the engine works they are renewed, so that a long batch keeps its own.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError

from leverplus.store import ClaimStore, ScoreStore
from vqa_scorer.work import WorkKey, grouped

logger = logging.getLogger(__name__)

_RENEWALS_BEFORE_EXPIRY = 3


class BatchClaims:
    """Claims of this process. They expire `expiry_s` seconds after it last renewed them.

    A batch's claims are renewed for at most `limit_s` seconds: an engine that hangs does not keep its keys from other scorers.
    """

    def __init__(self, scores: ScoreStore, generation_digest: str, *, expiry_s: float, limit_s: float) -> None:
        self._store: ClaimStore = scores.claims(f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}")
        self._generation_digest = generation_digest
        self._expiry_s = expiry_s
        self._limit_s = limit_s

    @contextmanager
    def held(self, keys: Iterable[WorkKey]) -> Generator[list[WorkKey]]:
        """Gives those of `keys` that nobody else makes and that are not committed: nobody else will make them inside the block.

        Committing them ends their claims; if the block raises, they are released for others to try. Raises OperationalError
        where they cannot be claimed.
        """
        won = self._claim(keys)
        if not won:
            yield won
            return
        ended = threading.Event()
        renewal = threading.Thread(target=self._renew, args=(won, ended), name="claims", daemon=True)
        renewal.start()
        try:
            yield won
        except Exception:
            self.release(won)
            raise
        finally:
            ended.set()
            renewal.join(self._expiry_s)

    def _claim(self, keys: Iterable[WorkKey]) -> list[WorkKey]:
        won: list[WorkKey] = []
        for (dataset, kind), wanted in grouped(keys).items():
            taken = self._store.claim(dataset, self._generation_digest, kind, wanted, expiry_s=self._expiry_s)
            won += [WorkKey(dataset, key, kind) for key in wanted if key in taken]
        return won

    def _renew(self, keys: list[WorkKey], ended: threading.Event) -> None:
        last = time.monotonic() + self._limit_s
        while not ended.wait(self._expiry_s / _RENEWALS_BEFORE_EXPIRY) and time.monotonic() < last:
            try:
                for (dataset, kind), own in grouped(keys).items():
                    self._store.renew(dataset, self._generation_digest, kind, own, expiry_s=self._expiry_s)
            except DBAPIError as exc:
                logger.warning("claims on %d keys were not renewed: %s", len(keys), exc.orig)

    def release(self, keys: Iterable[WorkKey]) -> None:
        """Leaves keys to others; where that cannot be said now, they expire."""
        keys = list(keys)
        try:
            for (dataset, kind), own in grouped(keys).items():
                self._store.release(dataset, self._generation_digest, kind, own)
        except DBAPIError as exc:
            logger.warning("claims on %d keys stay until they expire: %s", len(keys), exc.orig)
