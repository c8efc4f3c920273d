"""The line between the front process and an inference worker: typed messages over one stream socket.

    front  → worker   Work, Change, Stop
    worker → front    Ready, Alive, Done, Idle, Failed

A message on the wire is the length of its head, the lengths of its two byte strings, the head as JSON, and
the byte strings. A form of the server that spans machines replaces this module and no other.
"""

import asyncio
import socket
import struct
import threading
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson
from pydantic import TypeAdapter

from .messages import Answer, ModelChange, PredictRequest
from .status import WorkerEvents, WorkerStatus

_PREFIX = struct.Struct("!IQ")


class LinkClosedError(Exception):
    """The other process has gone."""


@dataclass(frozen=True, slots=True)
class Work:
    """Answer this request; `request_id` is what logs call it."""

    id: int
    request: PredictRequest
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """Load or unload a model, and answer as to a request."""

    id: int
    change: ModelChange


@dataclass(frozen=True, slots=True)
class Stop:
    """End, once what has been taken on is done."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker has started and takes `room` photos at a time, and a search."""

    room: int


@dataclass(frozen=True, slots=True)
class Alive:
    """The worker's heartbeat: what it is doing, and what happened since the last one."""

    status: WorkerStatus
    events: WorkerEvents = field(default_factory=WorkerEvents)


@dataclass(frozen=True, slots=True)
class Done:
    """The answer to a request."""

    id: int
    answer: Answer


@dataclass(frozen=True, slots=True)
class Idle:
    """The worker holds no model any more and may be told to stop."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker cannot start, and why."""

    cause: str


Message = Work | Change | Stop | Ready | Alive | Done | Idle | Failed

_PLAIN: dict[str, TypeAdapter[Any]] = {
    kind.__name__: TypeAdapter(kind) for kind in (Change, Stop, Ready, Alive, Idle, Failed)
}


def encode(message: Message) -> list[bytes]:
    """Return a message as the chunks to send."""
    match message:
        case Work(id, request, request_id):
            head = {"kind": "Work", "id": id, "entries": request.entries, "text": request.text}
            head |= {"has_image": request.image is not None, "upright": request.upright, "request_id": request_id}
            body = request.image or b""
        case Done(id, answer):
            head, body = {"kind": "Done", "id": id, "status": answer.status}, answer.body
            head |= {"out_of_memory": answer.out_of_memory, "stages": answer.stages}
        case _:
            head, body = {"kind": type(message).__name__, **asdict(message)}, b""
    encoded = orjson.dumps(head)
    return [_PREFIX.pack(len(encoded), len(body)) + encoded, body]


def decode(head: bytes, body: bytes) -> Message:
    """Return the message of a head and a body. Raises LinkClosedError for what no message is."""
    try:
        return _decode(head, body)
    except (KeyError, TypeError, ValueError) as error:
        raise LinkClosedError(f"no message: {head[:100]!r}") from error


def _decode(head: bytes, body: bytes) -> Message:
    fields: dict[str, Any] = orjson.loads(head)
    kind = fields.pop("kind")
    if kind == "Work":
        image = body if fields["has_image"] else None
        request = PredictRequest(fields["entries"], image, fields["text"], fields["upright"])
        return Work(fields["id"], request, fields["request_id"])
    if kind == "Done":
        return Done(fields["id"], Answer(fields["status"], body, fields["out_of_memory"], fields["stages"]))
    message: Message = _PLAIN[kind].validate_python(fields)
    return message


class WorkerEnd:
    """The worker's end of the line: blocking, for threads."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._stream = connection.makefile("rb")

    def receive(self) -> Message:
        """Wait for a message. Raises LinkClosedError when the front has gone."""
        head_length, body_length = _PREFIX.unpack(self._read(_PREFIX.size))
        return decode(self._read(head_length), self._read(body_length))

    def send(self, message: Message) -> None:
        """Send a message; several threads may. Raises LinkClosedError when the front has gone."""
        chunks = encode(message)
        try:
            with self._sending:
                for chunk in chunks:
                    self._connection.sendall(chunk)
        except OSError as error:
            raise LinkClosedError from error

    def close(self) -> None:
        """Close the line."""
        self._stream.close()
        self._connection.close()

    def _read(self, length: int) -> bytes:
        try:
            data = self._stream.read(length)
        except OSError as error:
            raise LinkClosedError from error
        if len(data) < length:
            raise LinkClosedError
        return data


class FrontEnd:
    """The front's end of the line, in its event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, connection: socket.socket) -> "FrontEnd":
        """Take over a connected socket."""
        return cls(*await asyncio.open_connection(sock=connection))

    async def receive(self) -> Message:
        """Wait for a message. Raises LinkClosedError when the worker has gone."""
        try:
            head_length, body_length = _PREFIX.unpack(await self._reader.readexactly(_PREFIX.size))
            return decode(await self._reader.readexactly(head_length), await self._reader.readexactly(body_length))
        except (OSError, asyncio.IncompleteReadError) as error:
            raise LinkClosedError from error

    def send(self, message: Message) -> None:
        """Send a message; a worker that has gone is noticed by `receive`."""
        for chunk in encode(message):
            self._writer.write(chunk)

    def close(self) -> None:
        """Close the line."""
        self._writer.close()
