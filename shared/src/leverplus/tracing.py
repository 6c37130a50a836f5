"""Spans of the work done for a request, for an OpenTelemetry collector where one is named.

Where none is, opentelemetry is not imported, and a span is a call that does nothing. Which span is whose lies in
`leverplus.origin` alone, beside the ids of request and job: log lines and calls of other services carry it from there.
"""

from __future__ import annotations

import atexit
import logging
import threading
from types import TracebackType
from typing import Any, Literal, Protocol, Self
from urllib.parse import urlsplit

from leverplus.errors import NotInstalled
from leverplus.origin import origin

logger = logging.getLogger(__name__)

Kind = Literal["internal", "server", "client", "consumer"]
Value = str | int | float | bool | None

_EXPORT_LIMIT_S = 5.0
"""For a batch of spans, with its repetitions."""
_END_LIMIT_S = 2.0
"""How long the end of a process waits for the spans that are left."""

_recorder: Any = None
_provider: Any = None


class Span(Protocol):
    """Entered, it is what further spans, log lines and calls of this thread or task belong to. An exception marks it failed."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def set(self, **attributes: Value) -> None:
        """Attributes; `a__b` is written a.b, None is left out."""
        ...

    def rename(self, name: str) -> None: ...


class _Nothing:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return

    def set(self, **attributes: Value) -> None:
        return

    def rename(self, name: str) -> None:
        return


NO_SPAN = _Nothing()


class _Recorded:
    def __init__(self, name: str, kind: Kind, attributes: dict[str, Value]) -> None:
        self._name = name
        self._kind = kind
        self._attributes = attributes

    def __enter__(self) -> Self:
        from opentelemetry import trace

        now = origin.get()
        self._span = _recorder.start_span(self._name, context=_parent(now.traceparent), kind=trace.SpanKind[self._kind.upper()])
        self.set(**self._attributes, request__id=now.request_id, job__id=now.job_id)
        context = self._span.get_span_context()
        own = f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
        self._token = origin.set(now._replace(traceparent=own))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        from opentelemetry.trace import Status, StatusCode

        if error is not None:
            self._span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"[:500]))
        self._span.end()
        origin.reset(self._token)

    def set(self, **attributes: Value) -> None:
        for name, value in attributes.items():
            if value is not None:
                self._span.set_attribute(name.replace("__", "."), value)

    def rename(self, name: str) -> None:
        self._span.update_name(name)


def span(name: str, kind: Kind = "internal", **attributes: Value) -> Span:
    """A span to be entered at once; its attributes as in `Span.set`."""
    return NO_SPAN if _recorder is None else _Recorded(name, kind, attributes)


def is_tracing() -> bool:
    return _recorder is not None


def start_tracing(service: str, endpoint: str) -> None:
    """Spans of this process go to the collector at `endpoint` (OTLP over HTTP, /v1/traces below it); NotInstalled if not.

    A few thousand spans wait at most, and nothing waits for them: where the collector is away or slow, they are dropped, which is
    warned about once until it answers again. Sampling and the queue's bounds are the SDK's own, with its OTEL_ variables.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as exc:
        hint = "`pip install 'leverplus[otel]'`, or unset OTEL_EXPORTER_OTLP_ENDPOINT"
        raise NotInstalled(what="tracing", extra="opentelemetry", reason=exc.name or str(exc), hint=hint) from exc
    address = urlsplit(endpoint)
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=_EXPORT_LIMIT_S)
    # What the SDK says of a collector that is away, it says again and again.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    record(service, BatchSpanProcessor(_warning_once(exporter, f"{address.hostname}:{address.port or 80}")))
    atexit.register(stop_tracing)


def record(service: str, processor: Any) -> None:
    """Has every span of this process go through an OpenTelemetry span processor from now on."""
    global _recorder, _provider
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    from leverplus import __version__

    resource = Resource.create({"service.name": service, "service.version": __version__, "service.namespace": "leverplus"})
    _provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    _provider.add_span_processor(processor)
    _recorder = _provider.get_tracer("leverplus", __version__)


def stop_tracing() -> None:
    """Sends what waits, for a moment; a process that has not begun to trace, or has ended it, is left alone."""
    global _recorder, _provider
    provider, _recorder, _provider = _provider, None, None
    if provider is not None:
        # Its own end would wait for as long as a collector that is away takes to be given up.
        ending = threading.Thread(target=provider.shutdown, name="end of tracing", daemon=True)
        ending.start()
        ending.join(_END_LIMIT_S)


def _parent(traceparent: str | None) -> Any:
    """The context of a span that another process may have made; an empty one begins a trace."""
    from opentelemetry import trace
    from opentelemetry.context import Context

    if traceparent is None:
        return Context()
    _, trace_id, span_id, flags = traceparent.split("-")
    remote = trace.SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=trace.TraceFlags(int(flags, 16)))
    return trace.set_span_in_context(trace.NonRecordingSpan(remote), Context())


def _warning_once(exporter: Any, shown: str) -> Any:
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class WarningOnce(SpanExporter):
        def __init__(self) -> None:
            self._is_away = False

        def export(self, spans: Any) -> Any:
            result = exporter.export(spans)
            is_away = result is not SpanExportResult.SUCCESS
            if is_away and not self._is_away:
                logger.warning("the collector at %s takes no spans: they are dropped until it does", shown)
            self._is_away = is_away
            return result

        def shutdown(self) -> None:
            exporter.shutdown()

    return WarningOnce()
