"""The connections of a service: uvicorn's, but for clients that fall silent before they ask anything, or hang up."""

from __future__ import annotations

import logging
from asyncio import Transport
from asyncio.events import TimerHandle
from typing import Any
from urllib.parse import quote

from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from leverplus.errors import shorten

logger = logging.getLogger("leverplus.web")

_LONGEST_HEADERS = 64 * 1024


class Connection(HttpToolsProtocol):
    """uvicorn's timeout for idle connections holds only between requests. Here it is also the time that a client has for its
    first byte and for the headers of each request, however slowly they come; at most _LONGEST_HEADERS bytes of them are held.

    Where several requests were sent ahead of their answers and the client hangs up, uvicorn tells the newest of them. Here the
    one that is being answered is told, too: it would go on writing to a connection that is closed, and fail.
    """

    _answering: RequestResponseCycle | None = None
    _headers_due: TimerHandle | None = None
    _headers_length = 0

    @override
    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_headers(0)

    @override
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        asked = self.cycle
        if not asked or asked.scope is not self.scope:  # none at first, whatever its type says
            self._await_headers(len(data))
        elif self._headers_due is not None:
            self._forget_headers()
        elif asked.response_complete:
            # What is left of the body of a request that was answered before it was read.
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_headers()
        asked = self._answering
        if asked is not None and not asked.response_complete:
            asked.disconnected = True
            asked.message_event.set()
            path = shorten(quote(asked.scope["path"]))
            logger.info("%s %s: the connection ended before the answer did", asked.scope["method"], path)
        super().connection_lost(exc)

    @override
    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def _await_headers(self, length: int) -> None:
        self._headers_length += length
        if self._headers_length > _LONGEST_HEADERS:
            self.send_400_response(f"The request's headers have more than {_LONGEST_HEADERS} bytes.")
        elif self._headers_due is None:
            self._headers_due = self.loop.call_later(self.timeout_keep_alive, self._give_up)

    def _forget_headers(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None
        self._headers_length = 0

    def _give_up(self) -> None:
        self._headers_due = None
        # A request that was sent ahead of these headers is answered first: then uvicorn's own timeout begins.
        if self._answering is None or self._answering.response_complete:
            self.timeout_keep_alive_handler()
