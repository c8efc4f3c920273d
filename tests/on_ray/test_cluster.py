"""The front and the replicas on a Ray cluster of several nodes on this machine: `make ray`, as ray must be there.

`make test` leaves these out: a cluster takes gigabytes and minutes.
"""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks import soak_load
from benchmarks.scale.cluster import Nodes, deploy, front, replicas, running_nodes, wait_for
from benchmarks.servers import Server
from immich_ml_compat.parts import Work

from ..clip_models import write_clip_model
from ..downloading import NAME, tree
from ..hub import TestHub
from ..model_folders import CLIP, OCR
from ..server import Server as Client

ROOT = Path(__file__).parents[2]
PHOTO = (ROOT / "docs/invoice.jpg").read_bytes()
TEXT = {"clip": {"textual": {"modelName": CLIP}}}
IMAGE = {"clip": {"visual": {"modelName": CLIP}}}
PROMPT = {"metrics_interval_s": 1, "look_back_period_s": 2, "upscale_delay_s": 1, "downscale_delay_s": 3}


def settings(cache: Path) -> dict[str, str]:
    return {"MACHINE_LEARNING_CACHE_FOLDER": str(cache), "MACHINE_LEARNING_PRECISION": "fp32"}


def client(server: Server, folder: Path) -> Client:
    process = subprocess.Popen(["true"])
    process.wait()
    return Client(f"http://127.0.0.1:{server.port}", process, folder / "none")


@pytest.fixture(scope="module")
def nodes(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A head that computes nothing and three nodes."""
    log = tmp_path_factory.mktemp("nodes") / "log"
    with running_nodes(["0", "2", "2", "2"], settings(cache), log) as nodes:
        yield nodes


def two_of_each(deployment: dict[str, Any]) -> None:
    """On different nodes, as serve.yaml has it."""
    deployment["autoscaling_config"] |= {"min_replicas": 2}


@pytest.fixture(scope="module")
def server(nodes: Nodes, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The front, with two replicas of each kind."""
    deploy(nodes, two_of_each)
    with front(nodes, settings(cache)) as server:
        yield server


def test_the_contract_is_kept(server: Server) -> None:
    tests = ["tests/test_recorded.py", "tests/test_conformance.py"]
    environment = os.environ | {"TEST_SERVER_URL": f"http://127.0.0.1:{server.port}"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


def test_what_replicas_do_is_counted_and_told(server: Server) -> None:
    url = f"http://127.0.0.1:{server.port}"

    def told() -> bool:
        text = httpx.get(f"{url}/metrics").text
        return 'immich_ml_model_info{device_id="0"' in text and "immich_ml_graph_batch_size_count 0.0" not in text

    wait_for(told, 10)
    text = httpx.get(f"{url}/metrics").text
    for line in (
        'immich_ml_requests_total{status="200",task="ocr"}',
        'immich_ml_stage_duration_seconds_count{stage="inference",task="facial-recognition"}',
        'immich_ml_queue_wait_seconds_count{kind="search"}',
    ):
        assert line in text
    assert "immich_ml_ready 1.0" in text
    health = httpx.get(f"{url}/health").json()
    assert health["ready"]
    assert {model["state"] for model in health["models"] if model["last_run"]} == {"loaded"}
    assert health["workers"]["running"] >= 4


def test_a_node_that_is_lost_under_load_loses_no_request(nodes: Nodes, server: Server) -> None:
    killed: list[int] = []

    def kill() -> None:
        time.sleep(15)
        killed.append(nodes.order("kill 1")["killed"])

    killing = threading.Thread(target=kill)
    killing.start()
    findings = soak_load.put_under_load(server.port, server.pid, 45, 16)
    killing.join()
    print(findings.outcomes, findings.slowest_s, killed)
    assert killed[0] > 0, "replicas were on it"
    assert findings.wrong == []
    assert {"ocr", "clip", "faces", "search", "bad image", "hang-up"} <= findings.outcomes.keys()
    wait_for(lambda: all(replicas(nodes, work.value) >= 2 for work in Work), 60)


def test_replicas_follow_the_queue_to_zero(nodes: Nodes, server: Server, tmp_path: Path) -> None:
    """The last test of these nodes."""

    def prompt(deployment: dict[str, Any]) -> None:
        deployment["autoscaling_config"] |= PROMPT

    deploy(nodes, prompt)
    wait_for(lambda: all(replicas(nodes, work.value) == 0 for work in Work), 90)
    began = time.monotonic()
    assert client(server, tmp_path).predict(TEXT, text="sea").status_code == 200
    print(f"from nothing: {time.monotonic() - began:.1f} s")
    assert replicas(nodes, Work.CLIP_TEXT.value) == 1
    assert replicas(nodes, Work.OCR.value) == 0
    wait_for(lambda: replicas(nodes, Work.CLIP_TEXT.value) == 0, 60)
    told = f"http://127.0.0.1:{server.port}/metrics"
    wait_for(lambda: "immich_ml_workers 0.0" in httpx.get(told).text, 20)


def test_models_are_fetched_once_for_each_node(hub: TestHub, tmp_path: Path) -> None:
    write_clip_model(tmp_path / "published", NAME)
    files = tree(tmp_path / "published/clip" / NAME)
    hub.repositories[f"immich-app/{NAME}"] = files
    with running_nodes(["0"], settings(tmp_path / "head") | {"HF_HUB_OFFLINE": "0"}, tmp_path / "log") as nodes:
        for name in ("one", "two"):
            nodes.order(f"add 2 MACHINE_LEARNING_CACHE_FOLDER={tmp_path / name} HF_ENDPOINT={hub.url}")
        deploy(nodes, two_of_each)
        with front(nodes, settings(tmp_path / "head")) as server:
            ask, answers = client(server, tmp_path), []
            requests = [
                threading.Thread(target=lambda what=what: answers.append(ask.predict(*what)))
                for what in [(IMAGE, PHOTO, None), (TEXT, None, "sea")] * 12
            ]
            for request in requests:
                request.start()
            for request in requests:
                request.join()
    assert [answer.status_code for answer in answers] == [200] * 24
    assert [tree(tmp_path / name / "clip" / NAME) for name in ("one", "two")] == [files, files]
    assert not (tmp_path / "head").exists(), "nothing is fetched where nothing is computed"
    assert len(hub.downloads()) == 2 * len(files)


def test_replicas_share_a_gpu_and_preload_what_is_theirs(cache: Path, tmp_path: Path) -> None:
    """No GPU is needed for Ray to give its shares away; the models run on the CPU."""

    def quarter(deployment: dict[str, Any]) -> None:
        deployment["ray_actor_options"] |= {"num_gpus": 0.25}
        deployment["autoscaling_config"] |= {"min_replicas": 1}

    preload = {"MACHINE_LEARNING_PRELOAD__CLIP__TEXTUAL": CLIP, "MACHINE_LEARNING_PRELOAD__OCR__DETECTION": OCR}
    with running_nodes(["0", "2,1"], settings(cache) | preload, tmp_path / "log") as nodes:
        deploy(nodes, quarter)
        with front(nodes, settings(cache)) as server:
            url = f"http://127.0.0.1:{server.port}/metrics"
            wait_for(lambda: httpx.get(url).text.count("\nimmich_ml_model_info{") == 2, 60)
            told = httpx.get(url).text
            assert "immich_ml_workers 2.0" in told, "the others have nothing to hold"
            assert re.search(r'immich_ml_model_info{.*task="clip",type="textual"}', told)
            assert re.search(r'immich_ml_model_info{.*task="ocr",type="detection"}', told)
            assert client(server, tmp_path).predict(IMAGE, PHOTO).status_code == 200
