"""Workers that come and go: real processes, real signals."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from .model_folders import CLIP, OCR
from .server import Server, running_server

ROOT = Path(__file__).parents[1]
TEXT = {"clip": {"textual": {"modelName": CLIP}}}
IMAGE = {"clip": {"visual": {"modelName": CLIP}}}
READ = {"ocr": {"detection": {"modelName": OCR}, "recognition": {"modelName": OCR}}}
PHOTO = (ROOT / "docs/invoice.jpg").read_bytes()
FAULTS = {"PYTHONPATH": f"{Path(__file__).parent / 'faults'}{os.pathsep}{ROOT}"}

Start = Callable[..., Server]


@pytest.fixture
def start(cache: Path, tmp_path: Path) -> Iterator[Start]:
    """Start servers of the test's own, with settings by their names."""
    servers: list[Any] = []

    def start(folder: Path = cache, **settings: object) -> Server:
        environment = {
            name if name.isupper() else f"MACHINE_LEARNING_{name}".upper(): str(value)
            for name, value in settings.items()
        }
        servers.append(running_server(folder, tmp_path, FAULTS | environment))
        server: Server = servers[-1].__enter__()
        return server

    yield start
    for server in servers:
        server.__exit__(None, None, None)


def workers(server: Server) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children()


def eventually(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def test_no_worker_runs_until_work_arrives_nor_after_the_last_model_expired(start: Start) -> None:
    server = start(model_ttl=1, model_ttl_poll_s=0.2)
    assert workers(server) == []
    assert server.predict({"nonsense": {}}, PHOTO).status_code == 422
    assert workers(server) == [], "what is wrong with a request is said without a worker"
    assert server.predict(TEXT, text="sea").status_code == 200
    (first,) = workers(server)
    eventually(lambda: not workers(server))
    assert not first.is_running()
    assert server.predict(TEXT, text="sea").status_code == 200
    assert "Unloaded clip/ViT-B-32__openai/textual" in server.log.read_text()


def test_a_model_in_use_or_asked_for_again_does_not_expire(start: Start) -> None:
    server = start(model_ttl=3, model_ttl_poll_s=0.1)
    for _ in range(8):
        assert server.predict(TEXT, text="sea").status_code == 200
        time.sleep(0.5)
    assert server.log.read_text().count("Loaded clip") == 1


def test_models_expire_one_by_one_and_texts_on_their_own_time(start: Start) -> None:
    server = start(model_ttl=1, text_model_ttl=600, model_ttl_poll_s=0.2)
    server.predict(TEXT, text="sea")
    server.predict(IMAGE, PHOTO)
    eventually(lambda: "Unloaded clip/ViT-B-32__openai/visual" in server.log.read_text())
    time.sleep(1)
    assert len(workers(server)) == 1
    assert "Unloaded clip/ViT-B-32__openai/textual" not in server.log.read_text()


def test_a_ttl_of_zero_keeps_models(start: Start) -> None:
    server = start(model_ttl=0, model_ttl_poll_s=0.1)
    server.predict(TEXT, text="sea")
    time.sleep(1)
    assert "Unloaded" not in server.log.read_text()
    assert len(workers(server)) == 1


def test_the_memory_budget_evicts_what_was_used_least_recently(start: Start) -> None:
    server = start(memory_budget_mb=33)  # OCR's two graphs take 31 MB, CLIP's two towers 3 and 2
    assert server.predict(READ, PHOTO).status_code == 200
    assert server.predict(IMAGE, PHOTO).status_code == 200
    log = server.log.read_text()
    assert "Unloaded ocr/PP-OCRv6_small/detection: the memory budget" in log
    assert "Unloaded ocr/PP-OCRv6_small/recognition" not in log
    assert server.predict(READ, PHOTO).status_code == 200


def test_preloaded_models_are_there_from_the_start_and_stay(start: Start) -> None:
    server = start(preload__clip__textual=CLIP, preload__ocr__detection=OCR, model_ttl=1, model_ttl_poll_s=0.2)
    eventually(lambda: server.log.read_text().count("Loaded") == 2)
    time.sleep(2)
    (worker,) = workers(server)
    assert server.predict(TEXT, text="sea").status_code == 200
    assert server.log.read_text().count("Loaded") == 2
    worker.kill()
    eventually(lambda: server.log.read_text().count("Loaded") == 4)


def test_a_preload_that_fails_does_not_make_workers_come_and_go(start: Start, tmp_path: Path) -> None:
    server = start(tmp_path / "empty", preload__ocr__recognition="PP-OCRv5_mobile", model_ttl_poll_s=0.1, model_ttl=1)
    eventually(lambda: "Preloading PP-OCRv5_mobile" in server.log.read_text())
    (worker,) = workers(server)
    assert server.predict(READ, PHOTO).status_code == 200
    time.sleep(2)
    assert workers(server) == [worker]
    assert server.log.read_text().count("Started inference worker") == 1


def test_gpus_take_turns(start: Start) -> None:
    server = start(workers=2, device_ids="0,1", request_threads=1)
    jobs = in_flight(server, 8)
    eventually(lambda: len(workers(server)) >= 2)
    lines = [worker.cmdline() for worker in workers(server)[:2]]
    used = [line[line.index("--device-id") + 1] for line in lines]
    assert used == ["0", "1"]
    assert [job.result().status_code for job in jobs] == [200] * 8


def test_a_model_in_use_is_never_unloaded(start: Start, tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.touch()
    server = start(model_ttl=1, model_ttl_poll_s=0.1, FAULT_SLOW_RUN=slow)
    (job,) = in_flight(server, 1)
    eventually(lambda: "Loaded clip" in server.log.read_text())
    time.sleep(3)
    assert "Unloaded" not in server.log.read_text()
    slow.unlink()
    assert job.result().status_code == 200
    eventually(lambda: "Unloaded clip" in server.log.read_text())


def test_a_gpu_that_is_asked_for_and_not_there_stops_the_start(cache: Path) -> None:
    variables = {"MACHINE_LEARNING_CACHE_FOLDER": str(cache), "MACHINE_LEARNING_DEVICE": "cuda", "IMMICH_PORT": "0"}
    command = [sys.executable, "-m", "immich_ml_compat"]
    run = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 2
    assert "MACHINE_LEARNING_DEVICE=cuda: " in run.stderr
    assert "install onnxruntime-gpu" in run.stderr


def test_an_unknown_model_to_preload_stops_the_start(cache: Path) -> None:
    environment = os.environ | {
        "MACHINE_LEARNING_CACHE_FOLDER": str(cache),
        "MACHINE_LEARNING_PRELOAD__CLIP__VISUAL": "nope",
    }
    run = subprocess.run(
        [sys.executable, "-m", "immich_ml_compat"], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert "nope" in run.stderr


def test_aliases_in_force_are_logged_once_at_start(start: Start) -> None:
    server = start(model_aliases='{"PP-OCRv5_server": "PP-OCRv6_small"}')
    line = "Substitution in force: ocr requests for PP-OCRv5_server are answered by PP-OCRv6_small"
    assert server.log.read_text().count(line) == 1
    renamed = {"ocr": {kind: {"modelName": "PP-OCRv5_server"} for kind in ("detection", "recognition")}}
    assert server.predict(renamed, PHOTO).json() == server.predict(READ, PHOTO).json()
    assert server.log.read_text().count("Substitution in force") == 1


def in_flight(server: Server, count: int) -> list[Future[httpx.Response]]:
    pool = ThreadPoolExecutor(count)
    jobs = [
        pool.submit(server.predict, READ if i % 2 else TEXT, PHOTO if i % 2 else None, None if i % 2 else "sea")
        for i in range(count)
    ]
    pool.shutdown(wait=False)
    return jobs


def in_the_middle(server: Server, count: int) -> None:
    """Wait until workers have so many requests in hand, none of which ends while runs are slow."""
    eventually(lambda: httpx.get(f"{server.url}/health").json()["queue"]["in_hand"] >= count)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_worker_that_dies_loses_nothing(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    slow = tmp_path / "slow"
    server = start(request_threads=4, FAULT_SLOW_RUN=slow)
    assert server.predict(READ, PHOTO).status_code == 200
    (worker,) = workers(server)
    slow.touch()
    jobs = in_flight(server, 12)
    in_the_middle(server, 5)  # four photos and a search
    worker.send_signal(number)
    slow.unlink()
    assert [job.result().status_code for job in jobs] == [200] * 12
    assert f"ended by {number.name}" in server.log.read_text()
    assert httpx.get(f"{server.url}/ping").text == "pong"


def test_a_worker_that_hangs_is_killed_and_loses_nothing(start: Start, tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    server = start(worker_heartbeat_timeout_s=2, FAULT_SLOW_RUN=slow)
    assert server.predict(READ, PHOTO).status_code == 200
    (worker,) = workers(server)
    slow.touch()
    jobs = in_flight(server, 4)
    in_the_middle(server, 3)  # two photos and a search, at the least
    worker.suspend()
    slow.unlink()
    assert httpx.get(f"{server.url}/ping", timeout=2).text == "pong"
    assert [job.result().status_code for job in jobs] == [200] * 4
    assert "it was silent for 2 s and was killed" in server.log.read_text()


def test_a_load_that_hangs_is_ended(start: Start, tmp_path: Path) -> None:
    stuck = tmp_path / "stuck"
    stuck.touch()
    server = start(worker_timeout=2, FAULT_SLOW_LOAD=stuck)
    (job,) = in_flight(server, 1)
    eventually(lambda: "still loading after" in server.log.read_text())
    stuck.unlink()
    assert job.result().status_code == 200


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGKILL", "SIGABRT"])
def test_only_the_request_that_kills_workers_gets_an_error(start: Start, name: str) -> None:
    server = start(request_threads=4)
    assert server.predict(IMAGE, PHOTO).status_code == 200
    with ThreadPoolExecutor(8) as pool:
        others = [pool.submit(server.predict, IMAGE, PHOTO) for _ in range(4)]
        killer = pool.submit(server.predict, IMAGE, f"fault:{name}".encode())
        others += [pool.submit(server.predict, IMAGE, PHOTO) for _ in range(4)]
    assert [job.result().status_code for job in others] == [200] * 8
    assert killer.result().status_code == 500
    assert name in killer.result().json()["detail"]


def test_nothing_is_computed_for_clients_that_have_gone(start: Start) -> None:
    server = start(request_threads=1)
    assert server.predict(TEXT, text="sea").status_code == 200
    for _ in range(40):
        with pytest.raises(httpx.TimeoutException):
            server.predict(READ, PHOTO, timeout=0.05)
    assert server.predict(TEXT, text="sea", timeout=60).status_code == 200
    # The one or two that were on their way are done; the rest left the queue.
    assert server.log.read_text().count("Loaded ocr") <= 2
    begin = time.monotonic()
    assert server.predict(READ, PHOTO).status_code == 200
    alone = time.monotonic() - begin
    for _ in range(40):
        with pytest.raises(httpx.TimeoutException):
            server.predict(READ, PHOTO, timeout=0.01)
    begin = time.monotonic()
    assert server.predict(TEXT, text="sea").status_code == 200
    assert time.monotonic() - begin < 20 * alone, "forty photos were not read first"


def test_a_panic_in_a_library_is_an_answer(start: Start) -> None:
    server = start(request_threads=1)
    for _ in range(3):
        answer = server.predict(IMAGE, b"fault:panic")
        assert (answer.status_code, answer.json()["detail"][:14]) == (500, "Internal error")
    assert server.predict(IMAGE, PHOTO).status_code == 200


def test_an_odd_signal_is_a_death_like_any_other(start: Start) -> None:
    server = start()
    assert server.predict(TEXT, text="sea").status_code == 200
    (worker,) = workers(server)
    worker.send_signal(37)
    assert server.predict(TEXT, text="sea").status_code == 200
    assert "it was ended by signal 37" in server.log.read_text()


def test_two_workers_share_the_load(start: Start) -> None:
    server = start(workers=2, request_threads=1)
    jobs = in_flight(server, 12)
    eventually(lambda: len(workers(server)) == 2)
    assert [job.result().status_code for job in jobs] == [200] * 12


def test_ping_says_why_while_no_worker_can_start_and_recovers(start: Start, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'immich_ml_compat.worker' in sys.orig_argv and os.path.exists(os.environ['BREAK']): os._exit(7)\n"
    )
    (switch := tmp_path / "switch").touch()
    server = start(PYTHONPATH=f"{broken}{os.pathsep}{ROOT}", BREAK=switch)
    response = server.predict(TEXT, text="sea")
    assert response.status_code == 503
    assert "exit code 7" in response.json()["detail"]
    ping = httpx.get(f"{server.url}/ping")
    assert ping.status_code == 503
    assert "exit code 7" in ping.text
    assert server.predict(TEXT, text="sea").status_code == 503
    switch.unlink()
    eventually(lambda: httpx.get(f"{server.url}/ping").status_code == 200)
    assert server.predict(TEXT, text="sea").status_code == 200


def test_workers_end_with_the_front(start: Start) -> None:
    server = start()
    server.predict(READ, PHOTO)
    (worker,) = workers(server)
    server.process.kill()
    server.process.wait()
    worker.wait(10)


def test_being_stopped_is_no_failure(start: Start) -> None:
    server = start()
    server.predict(READ, PHOTO)
    (worker,) = workers(server)
    server.process.terminate()
    assert server.process.wait(15) == 0
    assert not worker.is_running()


def test_the_front_holds_no_inference_libraries(start: Start) -> None:
    server = start()
    server.predict(READ, PHOTO)
    maps = Path(f"/proc/{server.process.pid}/maps")
    if not maps.exists():
        pytest.skip("the system has no /proc")
    for library in ("numpy", "cv2", "onnxruntime", "openvino", "PIL"):
        assert f"/{library}/" not in maps.read_text(), library
