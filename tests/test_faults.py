"""What else may go wrong around a server: no memory, no disk, hostile models, other servers, clocks, an early end."""

import logging
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from benchmarks import soak_load
from benchmarks.fuzz import models as tiny
from immich_ml_compat.engine import Engine, EngineError, EngineMemoryError, engine_error
from immich_ml_compat.engine.derived import DerivedGraphs
from immich_ml_compat.engine.onnxruntime import OnnxRuntimeEngine
from immich_ml_compat.engine.openvino import OpenVinoEngine

from .server import Server, running_server
from .test_optimized_graphs import engine, forms, product, small_graph
from .test_workers import IMAGE, PHOTO, READ, TEXT, Start, eventually, in_flight, start, workers

__all__ = ["start"]  # a fixture

DETECT = {"facial-recognition": {"detection": {"modelName": tiny.FACES}}}
MEGABYTE = 1_000_000


# ---------------------------------------------------------------- load


def test_a_load_of_all_kinds(cache: Path, tmp_path: Path) -> None:
    """Some seconds of `make soak`: every valid request is answered, though uploads have to wait."""
    with running_server(cache, tmp_path, {"MACHINE_LEARNING_QUEUE_MB": "8"}) as server:
        for entries in (READ, IMAGE, DETECT):
            assert server.predict(entries, PHOTO).status_code == 200
        findings = soak_load.put_under_load(server.port, server.process.pid, 3, 30)
        assert "Traceback" not in server.log.read_text()
    assert findings.wrong == []
    assert {"ocr", "clip", "faces", "search", "bad image", "hang-up"} <= findings.outcomes.keys()
    assert findings.pings_s


# ---------------------------------------------------------------- memory


def blank(side: int) -> bytes:
    file = BytesIO()
    Image.new("RGB", (side, side), (250, 20, 20)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def test_a_photo_for_which_memory_runs_out_beside_others_is_not_lost(tmp_path: Path) -> None:
    tiny.write_models(tmp_path / "cache")
    small, large, larger = blank(800), blank(5000), blank(11_000)
    # The limit counts what was freed but not unmapped, too: in one heap any thread can use that again.
    settings = {"MACHINE_LEARNING_REQUEST_THREADS": "4", "MALLOC_ARENA_MAX": "1"}
    with running_server(tmp_path / "cache", tmp_path, settings) as server, ThreadPoolExecutor(8) as pool:
        for _ in range(2):  # all threads and the arenas there
            answers = list(pool.map(lambda _: server.predict(DETECT, small), range(8)))
            assert [answer.status_code for answer in answers] == [200] * 8
        (worker,) = workers(server)
        limit = worker.memory_info().vms + 400 * MEGABYTE
        worker.rlimit(psutil.RLIMIT_AS, (limit, limit))
        answers = list(pool.map(lambda _: server.predict(DETECT, large), range(4)))
        assert [answer.status_code for answer in answers] == [200] * 4
        assert "run again alone" in server.log.read_text()
        answer = server.predict(DETECT, larger)
        assert (answer.status_code, "more memory than there is" in answer.json()["detail"]) == (400, True)
        assert server.predict(DETECT, small).status_code == 200
        assert workers(server) == [worker]


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        ("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc", EngineMemoryError),
        ("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 4", EngineMemoryError),
        ("CUDA failure 2: out of memory", EngineMemoryError),
        ("Invalid rank for input", EngineError),
    ],
)
def test_an_engine_without_memory_is_told_apart(cause: str, kind: type[Exception]) -> None:
    error = engine_error(Path("m.onnx"), cause)
    assert type(error) is kind
    assert str(error) == f"m.onnx: {cause}"


def test_what_engines_say_without_memory(tmp_path: Path) -> None:
    """A graph that asks for more than any machine has."""
    node = helper.make_node("ConstantOfShape", ["shape"], ["y"])
    shape = helper.make_tensor_value_info("shape", TensorProto.INT64, [2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, None])
    model = helper.make_model(helper.make_graph([node], "g", [shape], [y]), ir_version=8)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", 17))
    onnx.save(model, tmp_path / "model.onnx")
    session = OnnxRuntimeEngine("cpu").load(tmp_path / "model.onnx")
    with pytest.raises(EngineMemoryError):
        session.run({"shape": np.array([1 << 25, 1 << 24])})


# ---------------------------------------------------------------- disks


def test_optimised_graphs_and_a_full_disk(
    tmp_path: Path, mount: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    graph = small_graph(tmp_path / "m" / "model.onnx")
    folder = mount("size=64k")
    for _ in range(2):
        assert product(engine(folder / "kept", room=0).load(graph)) == 128  # it fills up meanwhile
    assert "without an optimised form" in caplog.text
    assert forms(folder / "kept") == []
    assert shutil.disk_usage(folder).free > 50_000, "nothing half done is left"


def test_optimised_graphs_and_a_read_only_disk(
    tmp_path: Path, mount: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    graph = small_graph(tmp_path / "m" / "model.onnx")
    assert product(engine(mount("ro") / "kept").load(graph)) == 128
    assert "Read-only file system" in caplog.text


def test_a_read_only_cache_is_served_from(cache: Path, tmp_path: Path, mount: Callable[[str], Path]) -> None:
    folder = mount("size=100m")
    shutil.copytree(cache / "clip", folder / "clip")
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    with running_server(folder, tmp_path) as server:
        assert server.predict(TEXT, text="sea").status_code == 200
        assert server.predict(IMAGE, PHOTO).status_code == 200
        assert "Traceback" not in server.log.read_text()


# ---------------------------------------------------------------- hostile models

ENGINES: list[Engine] = [OnnxRuntimeEngine("cpu"), OpenVinoEngine()]
engines = pytest.mark.parametrize("given", ENGINES, ids=["onnxruntime", "openvino"])


def elsewhere(location: str) -> TensorProto:
    """A matrix whose values are said to lie in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[128, 96], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", str(128 * 96 * 4))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def written(path: Path, nodes: list[onnx.NodeProto], *tensors: TensorProto, domain: str = "") -> Path:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 128])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 96])
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], tensors), ir_version=8, opset_imports=opsets)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


PRODUCT = helper.make_node("MatMul", ["x", "w"], ["y"])


@engines
@pytest.mark.parametrize("place", ["initializer", "constant", "branch", "beside large weights"])
@pytest.mark.parametrize("location", ["../secret", "inside/../../secret", "absolute"])
def test_weights_outside_the_folder_are_never_read(given: Engine, place: str, location: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(np.full((128, 96), 7, np.float32).tobytes())
    (tmp_path / "m" / "inside").mkdir(parents=True)
    weights = elsewhere(str(secret) if location == "absolute" else location)
    path, constant = tmp_path / "m" / "model.onnx", helper.make_node("Constant", [], ["w"], value=weights)
    match place:
        case "initializer":
            written(path, [PRODUCT], weights)
        case "constant":
            written(path, [constant, PRODUCT])
        case "branch":
            result = helper.make_tensor_value_info("w", TensorProto.FLOAT, [128, 96])
            branches = {
                f"{name}_branch": helper.make_graph([constant], name, [], [result]) for name in ("then", "else")
            }
            choice = numpy_helper.from_array(np.array(True), "choice")
            written(path, [helper.make_node("If", ["choice"], ["w"], **branches), PRODUCT], choice)
        case _:
            ballast = numpy_helper.from_array(np.ones(1 << 19, np.float32), "ballast")
            written(path, [PRODUCT], weights, ballast)
    with pytest.raises(EngineError, match=r"model.onnx.*(secret|Absolute path)") as caught:
        given.load(path)
    assert "\n" not in str(caught.value)


def test_an_optimised_form_is_not_made_of_weights_outside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(128 * 96 * 4))
    path = written(tmp_path / "m" / "model.onnx", [PRODUCT], elsewhere("../secret"))
    with pytest.raises(EngineError):
        OnnxRuntimeEngine("cpu", optimized=DerivedGraphs(tmp_path / "kept")).load(path)
    assert forms(tmp_path / "kept") == []


@engines
def test_operators_of_another_domain_are_refused(given: Engine, tmp_path: Path) -> None:
    node = helper.make_node("Steal", ["x"], ["y"], domain="com.example")
    with pytest.raises(EngineError, match=r"model.onnx.*Steal"):
        given.load(written(tmp_path / "m" / "model.onnx", [node], domain="com.example"))


# ---------------------------------------------------------------- others, and the clock


def test_two_servers_on_one_cache(cache: Path, tmp_path: Path) -> None:
    shutil.copytree(cache / "clip", tmp_path / "cache/clip")
    with ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        servers = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            servers.append(stack.enter_context(running_server(tmp_path / "cache", tmp_path / name)))
        jobs = [pool.submit(server.predict, IMAGE, PHOTO) for server in servers for _ in range(4)]
        answers = [job.result() for job in jobs]
        assert [answer.status_code for answer in answers] == [200] * 8
        vectors = [np.array(answer.json()["clip"].strip("[]").split(","), float) for answer in answers]
        assert all(np.dot(vector, vectors[0]) > 0.9999 for vector in vectors)
        for server in servers:
            assert "Traceback" not in server.log.read_text()
    assert [path.parent.name for path in (tmp_path / "cache").rglob("*.making")] == []


def test_a_clock_that_is_set_back_changes_nothing(start: Start, tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    server = start(FAULT_CLOCK=clock, model_ttl=2, model_ttl_poll_s=0.1, worker_heartbeat_timeout_s=5)
    assert server.predict(TEXT, text="sea").status_code == 200
    clock.touch()
    assert server.predict(TEXT, text="sea").status_code == 200
    eventually(lambda: not workers(server), 15)
    assert server.predict(IMAGE, PHOTO).status_code == 200
    log = server.log.read_text()
    assert "Unloaded clip/ViT-B-32__openai/textual" in log
    assert "died" not in log
    assert "Traceback" not in log


def test_a_form_that_was_begun_in_the_future_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock was set back by a year after a process died while it made one."""
    graph, kept = small_graph(tmp_path / "m" / "model.onnx"), tmp_path / "kept"
    engine(kept).load(graph)
    (form,) = forms(kept)
    form.parent.rename(form.parent.with_name(form.parent.name + ".making"))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 60)
    engine(kept).load(graph)
    assert not form.is_file(), "a minute may be another worker"
    monkeypatch.setattr(time, "time", lambda: now - 365 * 86400)
    engine(kept).load(graph)
    assert forms(kept) == [form]


# ---------------------------------------------------------------- the end


def test_what_fits_in_the_time_is_finished_when_the_server_stops(start: Start, tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    server = start(shutdown_timeout=60, FAULT_SLOW_RUN=slow)
    assert server.predict(READ, PHOTO).status_code == 200
    slow.touch()
    jobs = in_flight(server, 12)
    has_all(server, 12)
    server.process.send_signal(signal.SIGTERM)
    eventually(lambda: refused(server))
    slow.unlink()
    assert [job.result().status_code for job in jobs] == [200] * 12
    assert server.process.wait(15) == 0
    assert "of the requests in flight 12 were finished, 0 closed" in server.log.read_text()


def test_the_rest_is_closed_when_the_server_stops(start: Start, tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.touch()
    server = start(shutdown_timeout=1, queue_mb=1, request_threads=1, FAULT_SLOW_RUN=slow)
    large = PHOTO + bytes(400_000)
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(server.predict, IMAGE, large) for _ in range(6)]  # worked on, queued and held back
        has_all(server, 6)
        server.process.send_signal(signal.SIGTERM)
        for job in jobs:
            with pytest.raises(httpx.TransportError):
                job.result()
    assert server.process.wait(15) == 0
    log = server.log.read_text()
    assert "of the requests in flight 0 were finished, 6 closed" in log
    assert "Traceback" not in log
    assert "ERROR" not in log


def has_all(server: Server, count: int) -> None:
    """Wait until a server has so many requests."""
    process = psutil.Process(server.process.pid)
    eventually(lambda: sum(each.status == "ESTABLISHED" for each in process.net_connections("tcp")) >= count)
    time.sleep(0.5)  # their heads are on the way


def refused(server: Server) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port), timeout=1).close()
    except OSError:
        return True
    return False
