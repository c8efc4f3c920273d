"""The line between the front and a worker: every message arrives as it was sent."""

import asyncio
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from immich_ml_compat.link import (
    Alive,
    Change,
    Done,
    Failed,
    FrontEnd,
    Idle,
    LinkClosedError,
    Message,
    Ready,
    Stop,
    Work,
    WorkerEnd,
    decode,
)
from immich_ml_compat.messages import Answer, ModelChange, PredictRequest
from immich_ml_compat.status import ModelFailure, ModelStatus, WorkerEvents, WorkerStatus

texts = st.text(st.characters(exclude_categories=["Cs"]))
requests = st.builds(
    PredictRequest, entries=texts, image=st.none() | st.binary(), text=st.none() | texts, upright=st.booleans()
)
numbers = st.integers(0, 2**53)
seconds = st.floats(0, 1e9)
model = {"task": texts, "type": texts, "name": texts}
statuses = st.builds(
    WorkerStatus,
    pid=numbers,
    device_id=numbers,
    engine=texts,
    precision=texts,
    models=st.lists(
        st.builds(
            ModelStatus,
            **model,
            provider=texts,
            bytes=numbers,
            in_use=numbers,
            stays=st.booleans(),
            last_run=st.none() | seconds,
        ),
        max_size=2,
    ).map(tuple),
    failures=st.lists(st.builds(ModelFailure, **model, at=seconds, detail=texts), max_size=2).map(tuple),
    memory_bytes=numbers,
    vram_bytes=st.none() | numbers,
    loading_s=seconds,
    busy=numbers,
    fetching=numbers,
)
events = st.builds(
    WorkerEvents,
    batches=st.lists(st.tuples(numbers, numbers), max_size=2).map(tuple),
    downloads=numbers,
    failed_downloads=numbers,
)
answers = st.builds(
    Answer,
    status=st.integers(100, 599),
    body=st.binary(),
    out_of_memory=st.booleans(),
    stages=st.dictionaries(texts, st.dictionaries(texts, seconds, max_size=2), max_size=2),
)
messages = st.one_of(
    st.builds(Work, id=numbers, request=requests, request_id=texts),
    st.builds(Done, id=numbers, answer=answers),
    st.builds(Change, id=numbers, change=st.builds(ModelChange, load=st.booleans(), **model)),
    st.builds(Stop),
    st.builds(Ready, room=numbers),
    st.builds(Alive, status=statuses, events=events),
    st.builds(Idle),
    st.builds(Failed, cause=texts),
)


async def exchange(sent: list[Message]) -> tuple[list[Message], list[Message]]:
    """Send messages from the front to a worker, and back again."""
    ours, theirs = socket.socketpair()
    worker = WorkerEnd(theirs)
    at_worker: list[Message] = []

    def echo() -> None:
        for _ in sent:
            at_worker.append(worker.receive())
            worker.send(at_worker[-1])

    thread = threading.Thread(target=echo)
    thread.start()
    front = await FrontEnd.open(ours)
    for message in sent:
        front.send(message)
    at_front = [await front.receive() for _ in sent]
    thread.join()
    front.close()
    worker.close()
    return at_worker, at_front


@given(st.lists(messages, max_size=5))
def test_messages_arrive_as_they_were_sent(sent: list[Message]) -> None:
    assert asyncio.run(exchange(sent)) == (sent, sent)


def test_a_large_photo_arrives_whole() -> None:
    work = Work(1, PredictRequest("{}", bytes(range(256)) * 100_000))
    assert asyncio.run(exchange([work])) == ([work], [work])


def test_the_worker_notices_that_the_front_has_gone() -> None:
    ours, theirs = socket.socketpair()
    worker = WorkerEnd(theirs)
    ours.sendall(b"\0\0")
    ours.close()
    with pytest.raises(LinkClosedError):
        worker.receive()
    with pytest.raises(LinkClosedError):
        worker.send(Idle())
    worker.close()


def test_the_front_notices_that_the_worker_has_gone() -> None:
    async def receive() -> None:
        ours, theirs = socket.socketpair()
        front = await FrontEnd.open(ours)
        theirs.close()
        with pytest.raises(LinkClosedError):
            await front.receive()
        front.close()

    asyncio.run(receive())


@pytest.mark.parametrize(
    "head", [b"", b"nonsense", b"[]", b"{}", b'{"kind":"Nope"}', b'{"kind":"Ready"}', b'{"kind":"Work","id":1}']
)
def test_what_is_no_message_counts_as_a_line_that_broke(head: bytes) -> None:
    with pytest.raises(LinkClosedError):
        decode(head, b"")
