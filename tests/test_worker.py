"""A worker's threads, at one end of a line of the test's own."""

import socket
import threading
from typing import Any, cast

import pytest

from immich_ml_compat import worker as worker_module
from immich_ml_compat.link import Alive, Done, Ready, Stop, Work, WorkerEnd
from immich_ml_compat.messages import Answer, PredictRequest
from immich_ml_compat.service import Service
from immich_ml_compat.settings import Settings
from immich_ml_compat.status import WorkerEvents, WorkerStatus
from immich_ml_compat.worker import Worker


class OddService:
    """Gives an answer that no message can carry, where it is asked for one."""

    room = 1

    def answer(self, request: PredictRequest) -> Answer:
        return Answer(cast(int, object()) if request.text == "odd" else 200, b"{}")

    def preload(self, keys: Any) -> Any:
        return keys

    def status(self, busy: int) -> WorkerStatus:
        return WorkerStatus(1, 0, "none", "fp32", (), (), 0, None, 0.0, busy)

    def events(self) -> WorkerEvents:
        return WorkerEvents()


def test_an_answer_that_cannot_be_sent_leaves_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = socket.socketpair()
    front, line = WorkerEnd(ours), WorkerEnd(theirs)
    worker = Worker(line, cast(Service, OddService()), Settings())
    thread = threading.Thread(target=worker.run)
    thread.start()
    assert isinstance(front.receive(), Ready)
    answers = []
    for number, text in enumerate(("odd", "sea", "odd", "sea")):
        front.send(Work(number, PredictRequest("{}", text=text)))
        while not isinstance(message := front.receive(), Done):
            assert isinstance(message, Alive)
        answers.append((message.id, message.answer.status))
    assert answers == [(0, 500), (1, 200), (2, 500), (3, 200)]
    assert "nobody thought of" in caplog.text
    while not (isinstance(message := front.receive(), Alive) and not message.status.busy):
        pass
    front.send(Stop())
    thread.join()
    front.close()
    line.close()


class BusyService(OddService):
    """Is at its only photo until memory was given back."""

    def __init__(self) -> None:
        self.models = self
        self.released = threading.Event()

    def answer(self, request: PredictRequest) -> Answer:
        return Answer(200 if self.released.wait(60) else 500, b"{}")

    def release(self) -> None:
        self.released.set()

    def release_is_due(self, rest_s: float) -> bool:
        return False

    def unload_expired(self) -> int:
        return 1


class HalfBusyService(BusyService):
    """One of its models has had nothing to do for a while."""

    def release_is_due(self, rest_s: float) -> bool:
        return rest_s == worker_module.REST_S


@pytest.mark.parametrize(("service", "every_s"), [(BusyService, 1.5), (HalfBusyService, 1e6)])
def test_a_worker_that_never_rests_gives_memory_back(
    service: type[BusyService], every_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "RELEASE_EVERY_S", every_s)
    ours, theirs = socket.socketpair()
    front, line = WorkerEnd(ours), WorkerEnd(theirs)
    worker = Worker(line, cast(Service, service()), Settings(model_ttl_poll_s=1))
    thread = threading.Thread(target=worker.run)
    thread.start()
    assert isinstance(front.receive(), Ready)
    front.send(Work(1, PredictRequest("{}", text="sea")))
    while not isinstance(message := front.receive(), Done):
        assert isinstance(message, Alive)
    assert message.answer.status == 200
    front.send(Stop())
    thread.join()
    front.close()
    line.close()
