import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from immich_ml_compat.downloads import Downloader
from immich_ml_compat.downloads.huggingface import HuggingFace
from immich_ml_compat.downloads.modelscope import ModelScope
from immich_ml_compat.store import ModelStore

from .downloading import AT_ONCE, REPOSITORY, Make, contents
from .hub import TestHub, running_hub
from .model_folders import write_models
from .oracles import missing
from .server import Server, running_server


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with real models, for reading only."""
    folder = tmp_path_factory.mktemp("cache")
    write_models(folder)
    return folder


@pytest.fixture(scope="session")
def server(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with those models, shared by all tests; `TEST_SERVER_URL` names one that runs elsewhere."""
    if url := os.environ.get("TEST_SERVER_URL"):
        with subprocess.Popen(["true"]) as process:  # the tests that may be run like this ask for none
            yield Server(url, process, Path(os.devnull))
        return
    with running_server(cache, tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="session", autouse=True)
def _no_real_hub() -> Iterator[None]:
    """No test asks the real hubs, nor does any server or command that a test starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setenv("MODELSCOPE_DOMAIN", "nowhere://")
        yield


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[TestHub]:
    """A hub with one model on it."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with running_hub() as hub:
        hub.repositories[REPOSITORY] = contents()
        yield hub


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """An empty cache folder."""
    return ModelStore(tmp_path / "cache")


@pytest.fixture
def make(hub: TestHub, store: ModelStore) -> Make:
    """Downloaders from that hub into that folder, which do not wait between tries."""

    def make(token: str | None = None, url: str = hub.url, **options: Any) -> Downloader:
        hubs = {"huggingface": lambda: HuggingFace(url, token), "modelscope": lambda: ModelScope(url)}
        return Downloader(store, **{"hubs": hubs, "patience": AT_ONCE, "pause_s": 0.0, **options})

    return make


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a small file system, which needs root."""
    folder = tmp_path / "mounted"
    folder.mkdir()

    def mount(options: str) -> Path:
        command = f"mount -t tmpfs -o {options} test {folder} 2>/dev/null"
        if os.geteuid() != 0 or os.system(command) != 0:
            missing("the right to mount a file system")
        return folder

    yield mount
    os.system(f"umount -l {folder} 2>/dev/null")
