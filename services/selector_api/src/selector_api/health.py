"""Whether what is served makes anything of the query: measured beside the requests, after a checkpoint is loaded."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from leverplus.errors import Cancelled, LeverPlusError
from leverplus.selector_health import SelectorHealth
from selector_api.serving import Served

logger = logging.getLogger("selector_api")

_KEPT = 64
_PAUSE_S = 0.002
"""Between two queries, so that requests are not held up."""

_GAUGES: tuple[tuple[str, str], ...] = (
    ("distinct_pointers", "Different pointers that the selector chose over the sample"),
    ("entropy", "Entropy of the distribution of chosen pointers, in nats"),
    ("most_common_share", "Share of the queries that got the commonest pointer"),
    ("changed_when_swapped", "Share of the queries whose choice another query's embedding changes"),
    ("queries", "Queries of the sample"),
)


class HealthChecks:
    """One thread measures, a checkpoint at a time and each once."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="health")
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._found: OrderedDict[str, SelectorHealth | LeverPlusError | None] = OrderedDict()

    def begin(self, served: Served) -> None:
        """Returns at once."""
        checkpoint_id = served.info.checkpoint_id
        with self._lock:
            if self._stopping.is_set() or checkpoint_id in self._found:
                return
            self._found[checkpoint_id] = None
            while len(self._found) > _KEPT:
                self._found.popitem(last=False)
            self._thread.submit(self._measure, served)

    def of(self, checkpoint_id: str) -> dict[str, Any] | None:
        """As in a deployment's file: SelectorHealth as JSON, or {"unknown": why}; None until it is measured."""
        found = self._found.get(checkpoint_id)
        if found is None:
            return None
        return found.to_json() if isinstance(found, SelectorHealth) else {"unknown": str(found)}

    def close(self) -> None:
        """Ends what is being measured, and begins nothing more."""
        with self._lock:
            self._stopping.set()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _measure(self, served: Served) -> None:
        checkpoint_id = served.info.checkpoint_id
        try:
            found: SelectorHealth | LeverPlusError = served.health(self._check)
        except Cancelled:
            return
        except LeverPlusError as exc:
            found = exc
            logger.warning("the health of checkpoint %s cannot be measured: %s", checkpoint_id, exc)
        except Exception as exc:
            # A fault of ours is no reason to leave the question open for ever: it is told, in the log with its place.
            found = LeverPlusError(f"{type(exc).__name__}: {exc}")
            logger.exception("the health of checkpoint %s cannot be measured", checkpoint_id)
        else:
            for warning in found.warnings:
                logger.warning("checkpoint %s %s", checkpoint_id, warning)
        self._found[checkpoint_id] = found

    def _check(self) -> None:
        if self._stopping.wait(_PAUSE_S):
            raise Cancelled(what="the health check")


class HealthGauges(Collector):
    """/metrics: leverplus_selector_<name>{alias, checkpoint} for what each alias serves, as far as it is measured."""

    def __init__(self, served: Callable[[], Mapping[str, Served]], checks: HealthChecks) -> None:
        self._served = served
        self._checks = checks

    def collect(self) -> Iterable[GaugeMetricFamily]:
        of_alias = {(alias, served.info.checkpoint_id) for alias, served in self._served().items()}
        measured = {labels: health for labels in sorted(of_alias) if (health := self._checks.of(labels[1])) is not None}
        for name, described in _GAUGES:
            gauge = GaugeMetricFamily(f"leverplus_selector_{name}", described, labels=["alias", "checkpoint"])
            for labels, health in measured.items():
                if name in health:
                    gauge.add_metric(labels, health[name])
            yield gauge
