"""Processes that are killed while they download, that share a cache folder, or that fall asleep."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest

from immich_ml_compat.catalog import Task
from immich_ml_compat.downloads.manifest import MANIFEST, read_manifest
from immich_ml_compat.store import ModelStore

from .converting import CHECKPOINT, CHINESE, CHINESE_VISUAL, HUGGINGFACE, checkpoint, convert, made_of
from .downloading import GRAPH, NAME, TEXTUAL, VISUAL, Make, contents, published, tree
from .downloading_process import ADOPTION, CONVERSION_MOMENTS, MOMENTS
from .hub import TestHub

ROOT = Path(__file__).parents[1]
LEASE_S = 60.0
SHORT_LEASE_S = 1.0  # for a test that waits until it is over


@contextmanager
def downloading(
    hub: TestHub, store: ModelStore, *moment: str, lease_s: float = LEASE_S, name: str = NAME
) -> Iterator[subprocess.Popen[bytes]]:
    words = [hub.url, str(store.folder), str(lease_s), name, *moment]
    command = [sys.executable, "-m", "tests.downloading_process", *words]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def part_sizes(store: ModelStore) -> list[int]:
    return [path.stat().st_size for path in store.folder.glob(f".partial/clip/{NAME}/*/parts/*")]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_while_a_model_is_put_in_place_leaves_it_whole_or_not_there(
    make: Make, store: ModelStore, hub: TestHub, moment: str
) -> None:
    with downloading(hub, store, moment) as process:
        assert process.wait(60) == -signal.SIGKILL
    folder = store.folder / "clip" / NAME
    for key in (VISUAL, TEXTUAL):
        assert store.find(key) is None or tree(folder) == published(contents())
    hub.requests.clear()
    make().fetch(VISUAL)
    assert tree(folder) == published(contents())
    recorded = read_manifest(folder / MANIFEST)
    assert recorded is not None
    assert set(recorded.files) == set(published(contents()))
    assert not store.markers(Task.CLIP, NAME)
    assert hub.downloads(GRAPH) == [] or moment == "half a file copied"


def test_a_kill_in_the_middle_of_a_file_costs_only_what_was_under_way(
    make: Make, store: ModelStore, hub: TestHub
) -> None:
    fault = hub.fault(GRAPH, hold_at=100_000)
    with downloading(hub, store) as process:
        assert fault.reached.wait(60)
        wait_until(lambda: max(part_sizes(store), default=0) >= 100_000)
        process.kill()
        process.wait()
    fault.release.set()
    assert store.find(VISUAL) is None
    hub.requests.clear()
    make().fetch(VISUAL)
    (request,) = hub.downloads(GRAPH)
    assert request.first_byte >= 100_000
    assert hub.downloads("/config.json") == []
    assert tree(store.folder / "clip" / NAME) == published(contents())


def test_a_kill_while_a_leftover_is_taken_over_costs_nothing(make: Make, store: ModelStore, hub: TestHub) -> None:
    for moment in ("all files staged", *ADOPTION):
        with downloading(hub, store, moment) as process:
            assert process.wait(60) == -signal.SIGKILL
    staged = [tree(path) for path in store.partial(Task.CLIP, NAME).glob("*/model")]
    assert len(staged) == 2
    assert all(files.items() <= published(contents()).items() for files in staged), "none is there in half"
    hub.requests.clear()
    make().fetch(VISUAL)
    assert hub.downloads() == []
    assert tree(store.folder / "clip" / NAME) == published(contents())


@pytest.mark.parametrize(("whole", "half"), [("1-a", "2-b"), ("2-b", "1-a")])
@pytest.mark.parametrize("kind", ["parts", "model"])
def test_the_longer_of_two_leftovers_is_taken_over(
    make: Make, store: ModelStore, hub: TestHub, whole: str, half: str, kind: str
) -> None:
    content = contents()[GRAPH]
    path = GRAPH if kind == "model" else sha256(content).hexdigest()[:40]
    for process, length in ((whole, len(content)), (half, 1000)):
        place = store.partial(Task.CLIP, NAME) / process / kind / path
        place.parent.mkdir(parents=True)
        place.write_bytes(content[:length])
    make().fetch(VISUAL)
    assert hub.downloads(GRAPH) == []
    assert tree(store.folder / "clip" / NAME) == published(contents())


def test_waiting_for_another_process_is_said(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    def wait() -> None:
        with make().alone(Task.CLIP, NAME):
            pass

    other = threading.Thread(target=wait)
    with make().alone(Task.CLIP, NAME):
        other.start()
        wait_until(lambda: "Waiting" in caplog.text)
    other.join()
    # It may as well convert or remove.
    assert f"Waiting for another process to be done with clip/{NAME}" in caplog.text


def test_four_processes_download_once(store: ModelStore, hub: TestHub) -> None:
    fault = hub.fault(GRAPH, hold_at=100_000)
    with (
        downloading(hub, store) as first,
        downloading(hub, store) as second,
        downloading(hub, store) as third,
        downloading(hub, store) as fourth,
    ):
        assert fault.reached.wait(60)
        fault.release.set()
        codes = [process.wait(60) for process in (first, second, third, fourth)]
    assert codes == [0, 0, 0, 0]
    assert len(hub.downloads()) == len(published(contents()))
    assert tree(store.folder / "clip" / NAME) == published(contents())


def test_a_lock_whose_holder_died_on_another_machine_is_taken_over(make: Make, store: ModelStore) -> None:
    lock = store.lock(Task.CLIP, NAME)
    lock.parent.mkdir(parents=True)
    code = (
        "import os, signal, socket, sys, filelock\n"
        "socket.gethostname = lambda: 'elsewhere'\n"
        f"lease = filelock.SoftFileLease(sys.argv[1], lease_duration={SHORT_LEASE_S})\nlease.acquire()\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(lock)], check=False)
    assert lock.exists()
    make(lease_s=SHORT_LEASE_S).fetch(VISUAL)
    assert tree(store.folder / "clip" / NAME) == published(contents())


def test_a_process_that_slept_while_another_took_over_harms_nothing(
    make: Make, store: ModelStore, hub: TestHub
) -> None:
    fault = hub.fault(GRAPH, hold_at=100_000)
    with downloading(hub, store, lease_s=SHORT_LEASE_S) as process:
        assert fault.reached.wait(60)
        wait_until(lambda: max(part_sizes(store), default=0) >= 100_000)
        os.kill(process.pid, signal.SIGSTOP)
        lock = store.lock(Task.CLIP, NAME)
        # Alive, so only the lock's age tells that it does not go on.
        wait_until(lambda: time.time() - lock.stat().st_mtime > SHORT_LEASE_S)
        make(lease_s=SHORT_LEASE_S).fetch(VISUAL)
        before = tree(store.folder / "clip" / NAME)
        fault.release.set()
        os.kill(process.pid, signal.SIGCONT)
        assert process.wait(60) == 0  # it finds what the other one downloaded
    assert before == tree(store.folder / "clip" / NAME) == published(contents())


# --- models that are made here of a checkpoint -----------------------------------------------------------------


@pytest.mark.parametrize("moment", [*CONVERSION_MOMENTS, *MOMENTS])
def test_a_kill_while_a_model_is_made_leaves_it_whole_or_not_there(
    make: Make, store: ModelStore, hub: TestHub, moment: str
) -> None:
    hub.repositories[HUGGINGFACE] = {CHECKPOINT: checkpoint()}
    with downloading(hub, store, moment, name=CHINESE) as process:
        assert process.wait(60) == -signal.SIGKILL
    folder = store.folder / "clip" / CHINESE
    assert store.find(CHINESE_VISUAL) is None or tree(folder) == made_of(checkpoint())
    hub.requests.clear()
    make(converter=convert).fetch(CHINESE_VISUAL)
    assert tree(folder) == made_of(checkpoint())
    recorded = read_manifest(folder / MANIFEST)
    assert recorded is not None
    assert set(recorded.files) == set(made_of(checkpoint()))
    assert [path.name for path in (store.folder / ".partial/clip").iterdir()] == []
    assert hub.downloads() == []


def test_two_processes_download_and_convert_once(store: ModelStore, hub: TestHub) -> None:
    hub.repositories[HUGGINGFACE] = {CHECKPOINT: checkpoint()}
    fault = hub.fault(CHECKPOINT, hold_at=100_000)
    with downloading(hub, store, name=CHINESE) as first, downloading(hub, store, name=CHINESE) as second:
        assert fault.reached.wait(60)
        fault.release.set()
        codes = [process.wait(60) for process in (first, second)]
    assert codes == [0, 0]
    assert len(hub.downloads()) == 1
    assert tree(store.folder / "clip" / CHINESE) == made_of(checkpoint())
