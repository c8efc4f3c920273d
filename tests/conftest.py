from collections.abc import Iterator
from pathlib import Path

import pytest

from .model_folders import write_models
from .server import Server, running_server


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with real models, for reading only."""
    folder = tmp_path_factory.mktemp("cache")
    write_models(folder)
    return folder


@pytest.fixture(scope="session")
def server(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with those models, shared by all tests."""
    with running_server(cache, tmp_path_factory.mktemp("server")) as server:
        yield server
