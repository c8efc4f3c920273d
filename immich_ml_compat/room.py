"""Room for the bodies of requests in memory: beyond it a body is held back, unread in its socket.

A body has a place from before its first byte is read until its request is answered. Places go to who came first. Small
bodies, as searches have, have a share of the room to themselves, so that they do not wait behind photos.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

SMALL = 64 * 1024
"""Bytes of the largest body that counts as small."""

_SHARE_OF_SMALL = 16

_MEGABYTE = 1_000_000

Leaving = Callable[[], Awaitable[object]]
"""Waits until a client has left."""


class ClientLeftError(Exception):
    """Whoever was to send the body has gone."""


@dataclass(eq=False)
class _Line:
    """A part of the room, and who waits for a place in it."""

    most: int
    held: int = 0
    waiting: "deque[Place]" = field(default_factory=deque)

    def admit(self) -> None:
        """Give places to those in front for whom there is room; a body larger than all of it gets one when alone."""
        while self.waiting and (not self.held or self.held + self.waiting[0].wanted <= self.most):
            place = self.waiting.popleft()
            place.held, place.line = place.wanted, self
            self.held += place.held
            place.turn.set_result(None)


class BodyRoom:
    """Room for so many bytes of bodies. Lives in one event loop."""

    def __init__(self, most_mb: int = 512) -> None:
        most = most_mb * _MEGABYTE
        self._small = _Line(most // _SHARE_OF_SMALL)
        self._large = _Line(most - most // _SHARE_OF_SMALL)

    @property
    def held(self) -> int:
        """Bytes of the bodies that have a place."""
        return self._small.held + self._large.held

    @property
    def waiting(self) -> int:
        """Bodies that are held back."""
        return len(self._small.waiting) + len(self._large.waiting)

    @contextmanager
    def place(self) -> Iterator["Place"]:
        """Lend a place that is still to be taken."""
        place = Place(self)
        try:
            yield place
        finally:
            place.give_back()

    def line(self, size: int) -> _Line:
        """Return where a body of that size waits."""
        return self._small if size <= SMALL else self._large


class Place:
    """One body's place."""

    def __init__(self, room: BodyRoom) -> None:
        self._room = room
        self.line: _Line | None = None
        self.wanted = self.held = 0
        self.turn: asyncio.Future[None]

    @property
    def is_waited_for(self) -> bool:
        """Whether others wait for room where this place has some."""
        return self.line is not None and bool(self.line.waiting)

    async def take(self, size: int, leaving: Leaving | None = None) -> None:
        """Wait for room for `size` bytes, in place of what this place has. Raises ClientLeftError."""
        self.give_back()
        line = self._room.line(size)
        self.wanted, self.turn = size, asyncio.get_running_loop().create_future()
        line.waiting.append(self)
        line.admit()
        if self.turn.done():
            return
        leave = None if leaving is None else asyncio.ensure_future(leaving())
        either: set[asyncio.Future[Any]] = {self.turn} if leave is None else {self.turn, leave}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if leave is not None:
                leave.cancel()
            if not self.turn.done():
                line.waiting.remove(self)
                line.admit()
        if not self.turn.done():
            raise ClientLeftError

    def give_back(self, keep: int = 0) -> None:
        """Give the place back but for so many bytes."""
        if self.line is not None and self.held > keep:
            self.line.held -= self.held - keep
            self.held = keep
            self.line.admit()
