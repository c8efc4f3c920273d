"""A client's connection: uvicorn's, which waits for the head of a request as long as the client likes, with a limit."""

import asyncio
import select
from contextlib import ExitStack, suppress
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class PatientConnection(H11Protocol):
    """A connection on which a client has a limited time to send the head of a request.

    The time runs from the opening of the connection, and from the first byte after an answer, which may also be
    one of the answered request's body. While a request is being answered none runs, and without a byte after an
    answer it is uvicorn's own, for idle connections.
    """

    patience_s: float = 30

    _deadline: asyncio.TimerHandle | None = None

    @classmethod
    def with_patience(cls, seconds: float) -> "type[PatientConnection]":
        """Return the class of connections with this limit, in the form uvicorn takes."""
        return type(cls.__name__, (cls,), {"patience_s": seconds})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start."""
        super().connection_made(transport)
        self._lost = asyncio.Event()
        self.app_state = self.app_state | {"leaving": self.leaving}  # requests find it in their state
        self._start_deadline()

    def data_received(self, data: bytes) -> None:
        """Pass bytes on, and see whether they end the waiting for a head."""
        super().data_received(data)
        if self._is_answering:
            self._drop_deadline()
        else:
            self._start_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._drop_deadline()
        self._lost.set()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Tell the client that it speaks no HTTP, where no answer has begun; a second one nobody could read."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

    async def leaving(self) -> None:
        """Wait until the client has left, which asyncio does not notice while nothing is read.

        A client that left with more to send than the system's buffers hold is noticed when its bytes are read.
        """
        with ExitStack() as stack:
            if hasattr(select, "epoll"):
                with suppress(OSError):  # no file descriptor left: then it is noticed later
                    watch = stack.enter_context(select.epoll())
                    watch.register(self.transport.get_extra_info("socket").fileno(), select.EPOLLRDHUP)
                    self.loop.add_reader(watch.fileno(), self._lost.set)
                    stack.callback(self.loop.remove_reader, watch.fileno())
            await self._lost.wait()

    @property
    def _is_answering(self) -> bool:
        cycle: Any = self.cycle  # None before the first request
        return cycle is not None and not cycle.response_complete

    def _start_deadline(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.patience_s, self.timeout_keep_alive_handler)

    def _drop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
