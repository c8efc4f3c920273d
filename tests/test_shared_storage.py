"""One cache folder for several machines, on a file system that has no locks and moves nothing at once (FUSE)."""

import contextlib
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from ctypes.util import find_library
from dataclasses import replace
from hashlib import sha256
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from immich_ml_compat.catalog import Task
from immich_ml_compat.downloads import Downloader, installing
from immich_ml_compat.downloads.huggingface import HuggingFace
from immich_ml_compat.downloads.manifest import MANIFEST, read_manifest
from immich_ml_compat.store import CONFIG, ModelStore

from . import downloading_process
from .downloading import AT_ONCE, GRAPH, NAME, TEXTUAL, VISUAL, Make, contents, published, tree
from .hub import TestHub
from .oracles import missing
from .shared_folder import Traits, mounted
from .test_download_processes import wait_until

Machines = Callable[[int, Traits], list[ModelStore]]
"""Gives the cache folder as so many machines see it."""

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([downloading_process.__name__])  # processes that need not import it all

LEASE_S = 600.0  # who waits for one to be over has done something wrong
NO_EXCLUSION = Traits(excludes=False, unseen_s=600.0)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse cannot be used: no file system of the test's own")
    if not (find_library("fuse") or find_library("fuse3")):
        missing("libfuse")
    with contextlib.ExitStack() as stack:

        def mount(count: int, traits: Traits) -> list[ModelStore]:
            folder = tmp_path / "storage"
            folder.mkdir()
            points = [tmp_path / f"machine{number}" for number in range(count)]
            for point in points:
                stack.enter_context(mounted(folder, point, traits))
            return [ModelStore(point) for point in points]

        yield mount


class Reader:
    """A server that looks for the model all the time, and reads it whenever it is there."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read_all_the_time)
        self.found = 0
        self.torn: list[str] = []

    def __enter__(self) -> "Reader":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _read_all_the_time(self) -> None:
        while not self._over.wait(0.005):
            for key in (VISUAL, TEXTUAL):
                if files := self._store.find(key):
                    self.found += 1
                    folder = files.config.parent
                    needed = [path for path in published(contents()) if path.startswith(key.type) or path == CONFIG]
                    self.torn += [path for path in needed if not is_whole(folder, path)]


def is_whole(folder: Path, path: str) -> bool:
    try:
        return (folder / path).read_bytes() == contents()[path]
    except FileNotFoundError:
        return False


def download(store: ModelStore, hub: TestHub) -> None:
    """Look at the model once more, as the next server does."""
    Downloader(store, hubs={"huggingface": lambda: HuggingFace(hub.url)}, patience=AT_ONCE, lease_s=LEASE_S).download(
        Task.CLIP, NAME
    )


def leftovers(store: ModelStore) -> list[str]:
    """Return the files in the cache folder that are not the model's own.

    Nor libfuse's: it hides what is deleted while open, and may forget it where several mounts have one folder.
    """
    own = {f"clip/{NAME}/{path}" for path in (*published(contents()), MANIFEST)}
    found = {path.relative_to(store.folder).as_posix() for path in store.folder.rglob("*") if path.is_file()}
    return sorted(path for path in found - own if not path.rpartition("/")[2].startswith(".fuse_hidden"))


def assert_one_whole_model(stores: list[ModelStore]) -> None:
    for store in stores:
        assert tree(store.folder / "clip" / NAME) == published(contents())
        assert store.find(VISUAL) is not None
        assert store.find(TEXTUAL) is not None
        manifest = read_manifest(store.folder / "clip" / NAME / MANIFEST)
        assert manifest is not None
        assert set(manifest.files) == set(published(contents()))
    assert [leftovers(store) for store in stores] == [[] for _ in stores]


@contextlib.contextmanager
def downloading(hub: TestHub, store: ModelStore, *moment: str) -> Iterator[BaseProcess]:
    arguments = [hub.url, str(store.folder), str(LEASE_S), NAME, *moment]
    process = FORKS.Process(target=downloading_process.main, args=arguments)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def code(process: BaseProcess) -> int | None:
    process.join(60)
    return process.exitcode


def download_everywhere(stores: list[ModelStore], hub: TestHub, *moments: str) -> list[int | None]:
    """Download on all machines at the same time, on some until they die at a moment; return the exit codes."""
    held = hub.fault(GRAPH, times=len(stores), hold_at=100_000)
    words = [[moment] for moment in moments] + [[]] * (len(stores) - len(moments))
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(downloading(hub, store, *moment)) for store, moment in zip(stores, words, strict=True)
        ]
        wait_until(lambda: len(hub.downloads(GRAPH)) == len(stores))
        held.release.set()
        return [code(process) for process in processes]


@pytest.mark.parametrize("remembers_s", [0.0, 0.5])
def test_machines_that_cannot_exclude_each_other_harm_nothing(
    machines: Machines, hub: TestHub, remembers_s: float
) -> None:
    *stores, onlooker = machines(4, replace(NO_EXCLUSION, remembers_s=remembers_s))
    with Reader(onlooker) as reader:
        assert download_everywhere(stores, hub) == [0, 0, 0]
        time.sleep(2 * remembers_s)
        wait_until(lambda: reader.found)
    assert reader.torn == []
    assert_one_whole_model([*stores, onlooker])


def test_where_one_can_exclude_others_there_is_one_download(machines: Machines, hub: TestHub) -> None:
    *stores, onlooker = machines(4, Traits())
    with contextlib.ExitStack() as stack, Reader(onlooker) as reader:
        processes = [stack.enter_context(downloading(hub, store)) for store in stores]
        assert [code(process) for process in processes] == [0, 0, 0]
        wait_until(lambda: reader.found)
    assert len(hub.downloads()) == len(published(contents()))
    assert reader.torn == []
    assert_one_whole_model([*stores, onlooker])


@pytest.mark.parametrize(
    "moments",
    [("marker written", "half a file copied"), ("one file moved", "manifest written")],
)
def test_machines_that_die_beside_another_harm_nothing(
    machines: Machines, hub: TestHub, moments: tuple[str, str]
) -> None:
    *stores, onlooker = machines(4, NO_EXCLUSION)
    with Reader(onlooker) as reader:
        *dying, living = download_everywhere(stores, hub, *moments)
        assert living == 0
        assert set(dying) <= {-signal.SIGKILL, 0}  # one that comes last has nothing to do, and lives
        download(onlooker, hub)
        wait_until(lambda: reader.found)
    assert reader.torn == []
    assert_one_whole_model([*stores, onlooker])


def test_a_machine_that_dies_in_the_middle_of_a_move_harms_nothing(machines: Machines, hub: TestHub) -> None:
    """While a slow copy is under way."""
    store, onlooker = machines(2, Traits(rename_s=0.05))
    with Reader(onlooker) as reader:
        with downloading(hub, store) as process:
            wait_until(lambda: (onlooker.folder / "clip" / NAME / GRAPH).exists())
            process.kill()
            assert code(process) == -signal.SIGKILL
        download(onlooker, hub)
    assert reader.torn == []
    assert_one_whole_model([store, onlooker])


def test_a_lock_of_a_dead_process_does_not_stay_where_names_cannot_be_exchanged(
    machines: Machines, hub: TestHub
) -> None:
    (store,) = machines(1, Traits())
    with downloading(hub, store, "all files staged") as process:
        assert code(process) == -signal.SIGKILL
    assert store.lock(Task.CLIP, NAME).exists()
    hub.requests.clear()
    download(store, hub)
    assert hub.downloads() == []
    assert_one_whole_model([store])


# --- what is another's -----------------------------------------------------------------------------------------

ELSEWHERE = "0123456789ab-7-1234567-89abcdef"
"""A process of another machine."""


@pytest.mark.parametrize(("age_s", "is_taken_over"), [(0.0, False), (2 * LEASE_S, True)])
def test_what_another_machine_has_begun_is_its_own_while_that_lives(
    make: Make, store: ModelStore, hub: TestHub, age_s: float, is_taken_over: bool
) -> None:
    partial = store.partial(Task.CLIP, NAME)
    begun = partial / ELSEWHERE / "model" / GRAPH
    begun.parent.mkdir(parents=True)
    begun.write_bytes(contents()[GRAPH])
    sign = partial / f"{ELSEWHERE}.alive"
    sign.touch()
    os.utime(sign, (time.time() - age_s,) * 2)
    make(lease_s=LEASE_S).fetch(VISUAL)
    assert tree(store.folder / "clip" / NAME) == published(contents())
    assert begun.exists() != is_taken_over
    assert len(hub.downloads(GRAPH)) == (0 if is_taken_over else 1)
    assert (leftovers(store) == []) == is_taken_over


def test_another_machine_that_puts_files_in_place_is_waited_for_until_it_shows_no_life(
    make: Make, store: ModelStore
) -> None:
    folder = store.folder / "clip" / NAME
    half = contents()[GRAPH][:1000]
    (folder / GRAPH).parent.mkdir(parents=True)
    (folder / GRAPH).write_bytes(half)
    marker = store.marker(Task.CLIP, NAME, f"{ELSEWHERE}.1")
    marker.parent.mkdir(parents=True)
    file = {
        "size": 200_000,
        "sha256": sha256(contents()[GRAPH]).hexdigest(),
        "address": "",
        "date": "2026-01-01T00:00Z",
    }
    marker.write_text(json.dumps({"files": {GRAPH: file}}))
    assert store.find(VISUAL) is None
    thread = threading.Thread(target=make(lease_s=1.0).fetch, args=[VISUAL])
    thread.start()
    for _ in range(6):
        time.sleep(0.25)
        os.utime(marker)
        assert (folder / GRAPH).read_bytes() == half
    thread.join(30)
    assert_one_whole_model([store])


def test_a_file_that_was_cut_is_no_model_until_somebody_looked_at_it(
    make: Make, store: ModelStore, hub: TestHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system may show it as it was; where it stays like that it is somebody's own."""
    monkeypatch.setattr(installing, "_SETTLE_S", 0.0)
    make().fetch(VISUAL)
    folder = store.folder / "clip" / NAME
    os.truncate(folder / GRAPH, 1000)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][GRAPH]["stamp"] = (folder / GRAPH).stat().st_ctime_ns  # so it seems to have been so before
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert store.find(VISUAL) is None
    assert store.find(TEXTUAL) is not None
    hub.requests.clear()
    assert make().fetch(VISUAL) == store.find(VISUAL)
    assert hub.downloads() == []
    assert (folder / GRAPH).stat().st_size == 1000
    left = read_manifest(folder / MANIFEST)
    assert left is not None
    assert set(left.files) == set(published(contents())) - {GRAPH}


def test_a_file_that_a_person_put_there_is_taken_as_it_is(make: Make, store: ModelStore) -> None:
    make().fetch(VISUAL)
    path = store.folder / "clip" / NAME / GRAPH
    time.sleep(0.01)  # what a file system's clock can tell apart
    path.write_bytes(b"my own")
    files = store.find(VISUAL)
    assert files is not None
    assert files.graph.read_bytes() == b"my own"
