"""Room for bodies: bounded in bytes, first come first served, and nobody forgotten."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from immich_ml_compat.body import BodyLimits
from immich_ml_compat.messages import Answer, PredictRequest
from immich_ml_compat.room import SMALL, BodyRoom, ClientLeftError, Place

from .http_face import GOOD, MULTIPART, field, form, serving

MEGABYTE = 1_000_000
LARGE = 300_000


# ---------------------------------------------------------------- the room


class Holder:
    """One body's way: it waits for its place, and keeps it until told to go."""

    def __init__(self, room: BodyRoom, size: int, arrived: list["Holder"]) -> None:
        self.size = size
        self.place: Place | None = None
        self.go = asyncio.Event()
        self.leave = asyncio.Event()
        self.left = False
        self.task = asyncio.ensure_future(self._run(room, arrived))

    async def _run(self, room: BodyRoom, arrived: list["Holder"]) -> None:
        with room.place() as place:
            try:
                await place.take(self.size, self.leave.wait)
            except ClientLeftError:
                self.left = True
                return
            self.place = place
            arrived.append(self)
            try:
                await self.go.wait()
            finally:
                self.place = None


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


sizes = st.one_of(st.integers(0, SMALL), st.integers(SMALL + 1, 3 * MEGABYTE))
steps = st.one_of(
    st.tuples(st.just("come"), sizes), st.tuples(st.sampled_from(["go", "leave", "cancel"]), st.integers(0, 50))
)


@given(st.lists(steps, max_size=40))
def test_whatever_comes_and_goes(script: list[tuple[str, int]]) -> None:
    """The bound holds but for a body that is alone, each line is in order, and in the end all have had their turn."""

    async def body() -> None:
        room, holders, arrived = BodyRoom(2), list[Holder](), list[Holder]()
        for action, value in script:
            inside = [holder for holder in holders if holder.place]
            waiting = [holder for holder in holders if not holder.place and not holder.task.done()]
            if action == "come":
                holders.append(Holder(room, value, arrived))
            elif action == "go" and inside:
                inside[value % len(inside)].go.set()
            elif action == "leave" and waiting:
                waiting[value % len(waiting)].leave.set()
            elif action == "cancel" and holders:
                holders[value % len(holders)].task.cancel()
            await settle()
            check(room, holders)
        for holder in holders:
            holder.go.set()
        await asyncio.wait_for(asyncio.gather(*(holder.task for holder in holders), return_exceptions=True), 10)
        assert (room.held, room.waiting) == (0, 0)
        for small in (True, False):
            order = [holders.index(holder) for holder in arrived if (holder.size <= SMALL) == small]
            assert order == sorted(order)

    asyncio.run(body())


def check(room: BodyRoom, holders: list[Holder]) -> None:
    inside = [holder for holder in holders if holder.place]
    waiting = [holder for holder in holders if not holder.place and not holder.task.done()]
    assert room.held == sum(holder.size for holder in inside)
    assert room.waiting == len(waiting)
    for small, most in ((True, 2 * MEGABYTE // 16), (False, 2 * MEGABYTE - 2 * MEGABYTE // 16)):
        line = [holder.size for holder in inside if (holder.size <= SMALL) == small]
        next_sizes = [holder.size for holder in waiting if (holder.size <= SMALL) == small]
        assert sum(line) <= most or sum(size > 0 for size in line) == 1
        assert not next_sizes or sum(line) + next_sizes[0] > most, "nobody waits for room that is there"


# ---------------------------------------------------------------- the HTTP face


class Gate:
    """An answerer that holds each request with an image until it is let go."""

    def __init__(self) -> None:
        self.arrived: list[int] = []
        self.open = threading.Event()

    def __call__(self, request: PredictRequest) -> Answer:
        if request.image is not None:
            self.arrived.append(len(request.image))
            assert self.open.wait(60)
        return Answer(200, b"{}")


@contextmanager
def held_face(most_mb: int = 1, limits: BodyLimits = BodyLimits()) -> Iterator[tuple[str, Gate, BodyRoom]]:  # noqa: B008
    gate, room = Gate(), BodyRoom(most_mb)
    with serving(gate, threads=64, limits=limits, room=room) as url:
        try:
            yield url, gate, room
        finally:
            gate.open.set()


def test_a_body_that_drips_gives_way_to_those_that_wait() -> None:
    with held_face(limits=BodyLimits(patience_s=1)) as (url, gate, _):
        gate.open.set()
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {MULTIPART}\r\nContent-Length: 900000\r\n\r\n"
        address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
        with socket.create_connection(address, timeout=30) as dripping:
            dripping.sendall(head.encode() + b"--B\r\n")
            for _ in range(25):  # it may, for as long as it is in nobody's way
                time.sleep(0.1)
                dripping.sendall(b"X")
            waiting = send(url, 500_000)
            with suppress(ConnectionError):
                for _ in range(150):
                    if not waiting.is_alive():
                        break
                    time.sleep(0.1)
                    dripping.sendall(b"X")
            answer = dripping.recv(65536)
        assert waiting.status == 200
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"while others waited" in answer


def photo(size: int) -> bytes:
    return form(GOOD, field("image", bytes(size), '; filename="a"'))


def send(url: str, size: int, *, chunked: bool = False, delay_s: float = 0.0) -> "Sending":
    return Sending(url, photo(size), chunked, delay_s)


class Sending(threading.Thread):
    """A client that posts in a thread."""

    def __init__(self, url: str, body: bytes, chunked: bool, delay_s: float) -> None:
        super().__init__()
        self._url, self._body, self._chunked = url, body, chunked
        self.status: int | None = None
        self.start()
        time.sleep(delay_s)

    def run(self) -> None:
        content = iter([self._body[:1000], self._body[1000:]]) if self._chunked else self._body
        headers = {"Content-Type": MULTIPART}
        self.status = httpx.post(f"{self._url}/predict", content=content, headers=headers, timeout=60).status_code


def until(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


@pytest.mark.parametrize("chunked", [False, True])
def test_uploads_beyond_the_bound_wait_unread_and_no_timer_runs(chunked: bool) -> None:
    limits = BodyLimits(most_mb=1 if chunked else 64, patience_s=0.5)
    with held_face(limits=limits) as (url, gate, room):
        sending = [send(url, LARGE, chunked=chunked) for _ in range(8)]
        fit = 2 if chunked else 3  # one without a length may be of any size until it has been read
        until(lambda: len(gate.arrived) >= fit - 1 and len(gate.arrived) + room.waiting == 8)
        time.sleep(1.2)
        assert room.held <= MEGABYTE
        assert room.waiting >= 5
        gate.open.set()
        for each in sending:
            each.join(30)
        assert [each.status for each in sending] == [200] * 8
        assert (room.held, room.waiting) == (0, 0)


def test_searches_pass_uploads_that_wait() -> None:
    with held_face() as (url, gate, room):
        sending = [send(url, LARGE) for _ in range(6)]
        until(lambda: room.waiting == 3)
        search = {"entries": (None, "{}"), "text": (None, "sea")}
        for _ in range(5):
            assert httpx.post(f"{url}/predict", files=search, timeout=20).status_code == 200
        assert room.waiting == 3
        gate.open.set()
        for each in sending:
            each.join(30)


def test_a_body_larger_than_the_bound_gets_through_when_it_is_alone() -> None:
    with held_face() as (url, gate, room):
        before = send(url, LARGE)
        until(lambda: gate.arrived == [LARGE])
        large = send(url, 3 * MEGABYTE)
        until(lambda: room.waiting == 1)
        behind = send(url, LARGE, delay_s=0.1)
        until(lambda: room.waiting == 2)
        gate.open.set()
        for each in (before, large, behind):
            each.join(30)
            assert each.status == 200
        assert gate.arrived == [LARGE, 3 * MEGABYTE, LARGE]


@pytest.mark.parametrize(("size", "abrupt"), [(100_000, False), (LARGE, True)])
def test_a_client_that_hangs_up_while_held_back_frees_its_place(size: int, abrupt: bool) -> None:
    """One that says goodbye does so behind its bytes: it is heard at once where the system has taken those in."""
    with held_face() as (url, gate, room), ExitStack() as stack:
        sending = [send(url, LARGE) for _ in range(3)]
        until(lambda: len(gate.arrived) == 3)
        port = int(url.rsplit(":", 1)[1])
        body = photo(size)
        head = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: {MULTIPART}\r\nContent-Length: {len(body)}\r\n\r\n"
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(4)]
        for client in clients:
            client.sendall(head.encode() + body)
        until(lambda: room.waiting == 4)
        for client in clients[:3]:
            if abrupt:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
        until(lambda: room.waiting == 1)
        gate.open.set()
        assert clients[3].recv(100).startswith(b"HTTP/1.1 200 ")
        for each in sending:
            each.join(30)
        assert gate.arrived == [LARGE] * 3 + [size], "nothing was read for those who left"
        assert (room.held, room.waiting) == (0, 0)


@pytest.mark.parametrize(
    "body",
    [b"--B\r\nnonsense", form(field("text", "sea"))],
    ids=["no form", "no entries"],
)
def test_a_refused_body_gives_its_place_back(body: bytes) -> None:
    with held_face() as (url, _, room):
        status = httpx.post(f"{url}/predict", content=body, headers={"Content-Type": MULTIPART}).status_code
        assert status in (400, 422)
        until(lambda: room.held == 0)
