"""MT Photos' API: its shapes, its keys, and the answers of its own server's libraries on the same model files."""

import asyncio
import socket
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from starlette.requests import Request

from immich_ml_compat.application import Front
from immich_ml_compat.body import BodyError, BodyLimits
from immich_ml_compat.dispatch import Backend
from immich_ml_compat.messages import Answer
from immich_ml_compat.mt_photos import MtPhotos as Parts
from immich_ml_compat.mt_photos import create_mt_photos, create_mt_photos_app
from immich_ml_compat.mt_photos.answers import upright_boxes
from immich_ml_compat.mt_photos.key import ApiKey
from immich_ml_compat.mt_photos.requests import Requests
from immich_ml_compat.names import ModelNames
from immich_ml_compat.plan import plan_request
from immich_ml_compat.readiness import Readiness
from immich_ml_compat.room import BodyRoom
from immich_ml_compat.settings import Settings
from immich_ml_compat.status import ModelStatus, WorkerStatus
from immich_ml_compat.store import ModelStore
from immich_ml_compat.worker import HEARTBEAT_S

from .chinese_clip import original, save_checkpoint
from .model_folders import FACES
from .oracles import chinese_clip, oracle, packaged
from .pages import CHINESE, ENGLISH, column, encoded, page
from .server import Server, exchange, running_server

KEY = "mt_photos_ai_extra"
QUERY = "雪地里奔跑的狗"
LINES = [*CHINESE[:4], *ENGLISH[:2]]
PAGE = page((760, 380), column(LINES))
ORIENTATION = 0x0112


class MtPhotos:
    """A client as MT Photos is."""

    def __init__(self, url: str, key: str | None = KEY) -> None:
        self.url = url
        self.headers = {} if key is None else {"api-key": key}

    def post(self, path: str, image: bytes | None = None, **options: Any) -> httpx.Response:
        if image is not None:
            options["files"] = {"file": ("test.jpg", image, "image/jpeg")}
        return httpx.post(f"{self.url}{path}", headers=self.headers, timeout=120, **options)

    def result(self, path: str, image: bytes | None = None, **options: Any) -> Any:
        answer = self.post(path, image, **options)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json"), answer.text
        body = answer.json()
        assert "msg" not in body, body
        return body["result"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def link_models(cache: Path, folder: Path) -> Path:
    """Return a cache folder with the same models, where others can be added."""
    for task in ("facial-recognition", "ocr"):
        (folder / task).mkdir(parents=True)
        for model in (cache / task).iterdir():
            (folder / task / model.name).symlink_to(model)
    return folder


@pytest.fixture(scope="module")
def model() -> Any:
    """Chinese-CLIP with random weights, as its own code builds it."""
    return original("cn-clip_ViT-B-16")


@pytest.fixture(scope="module")
def checkpoints(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    save_checkpoint(model, folder / "clip_cn_vit-b-16.pt")
    return folder


@pytest.fixture(scope="module")
def server(cache: Path, checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the parent stack's variables alone, on two ports."""
    folder = tmp_path_factory.mktemp("server")
    variables = {
        "MACHINE_LEARNING_MT_PHOTOS": "true",
        "MACHINE_LEARNING_MT_PHOTOS_OCR_MODEL": "PP-OCRv4_mobile",
        "API_AUTH_KEY": KEY,
        "CLIP_MODEL": "ViT-B-16",
        "CLIP_DOWNLOAD_ROOT": str(checkpoints),
        "RECOGNITION_MODEL": FACES,
        "DETECTION_THRESH": "0.65",
        "HTTP_PORT": str(free_port()),
        "IMMICH_LOG_LEVEL": "debug",
    }
    with running_server(link_models(cache, folder / "cache"), folder, variables) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> MtPhotos:
    return MtPhotos(mt_photos_address(server))


def mt_photos_address(server: Server) -> str:
    (line,) = [line for line in server.log.read_text().splitlines() if "Serving MT Photos on " in line]
    return line.split("Serving MT Photos on ")[1].split()[0]


# ---------------------------------------------------------------- the answers of its own server's libraries


def bgr(image: Image.Image) -> NDArray[np.uint8]:
    """An image as OpenCV has it."""
    return np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])


def test_text_is_what_rapidocr_reads(client: MtPhotos) -> None:
    read, _ = oracle("rapidocr_onnxruntime").RapidOCR()(bgr(PAGE))
    result = client.result("/ocr", encoded(PAGE))
    # This model sees few of the blanks between words, and which depends on a pixel more or less.
    found = [text.replace(" ", "") for text in result["texts"]]
    assert found == [text.replace(" ", "") for _, text, _ in read]
    assert found == [text.replace(" ", "") for text in LINES], "and it is what stands there"
    for box, score, (quad, _, their_score) in zip(result["boxes"], result["scores"], read, strict=True):
        assert abs(float(score) - their_score) < 0.03
        left, top = float(box["x"]), float(box["y"])
        corners = np.array([[left, top], [left + float(box["width"]), top + float(box["height"])]])
        theirs = np.array([np.min(quad, axis=0), np.max(quad, axis=0)])
        assert np.abs(corners - theirs).max() <= 4, box
    assert set(result) == {"texts", "scores", "boxes"}
    assert all(set(box) == {"x", "y", "width", "height"} for box in result["boxes"])
    assert all(isinstance(value, str) for box in result["boxes"] for value in box.values())
    assert all(isinstance(score, str) and len(score) == 4 for score in result["scores"]), "as 0.98"


def test_text_is_looked_for_as_rapidocr_looks_for_it(tmp_path: Path) -> None:
    theirs = oracle("yaml").safe_load(packaged("rapidocr", "config.yaml").read_text())
    asked = plan_request(Requests(Settings()).ocr(b"photo"), ModelNames(ModelStore(tmp_path), {})).ocr
    assert asked is not None
    assert asked.min_box_score == theirs["Det"]["box_thresh"]
    assert asked.min_text_score == theirs["Global"]["text_score"]
    assert theirs["Det"]["limit_type"] == "min"
    assert asked.min_resolution == theirs["Det"]["limit_side_len"]
    assert asked.max_resolution == theirs["Global"]["max_side_len"] * 3 / 4, "the shorter side of 4:3"


def test_vectors_are_chinese_clips(client: MtPhotos, model: Any) -> None:
    photo = Image.effect_mandelbrot((300, 200), (-2, -1, 1, 1), 50).convert("RGB")
    theirs = model.encode_image(chinese_clip().image_transform(224)(photo)[None])[0].numpy()
    for path, found, expected in (
        ("/clip/img", client.result("/clip/img", encoded(photo)), theirs),
        (
            "/clip/txt",
            client.result("/clip/txt", json={"text": QUERY}),
            model.encode_text(chinese_clip().tokenize([QUERY]))[0].numpy(),
        ),
    ):
        assert all(isinstance(value, str) and len(value.rpartition(".")[2]) == 16 for value in found), path
        vector = np.array([float(value) for value in found])
        assert vector @ expected / np.linalg.norm(vector) / np.linalg.norm(expected) >= 0.9999, path


@pytest.mark.filterwarnings("ignore::FutureWarning")  # insightface calls what scikit-image deprecates
def test_faces_are_insightfaces(client: MtPhotos, cache: Path) -> None:
    data = packaged("insightface", "data/images/t1.jpg").read_bytes()
    image = bgr(Image.open(BytesIO(data)))
    folder = cache / "facial-recognition" / FACES
    detector = oracle("insightface.model_zoo.scrfd").SCRFD(str(folder / "detection/model.onnx"))
    detector.prepare(-1, det_thresh=0.65, input_size=(640, 640))
    recognizer = oracle("insightface.model_zoo.arcface_onnx").ArcFaceONNX(str(folder / "recognition/model.onnx"))
    boxes, landmarks = detector.detect(image, max_num=0, metric="default")
    answer = client.post("/represent", data).json()
    assert {name: answer[name] for name in answer if name != "result"} == {
        "detector_backend": "insightface",
        "recognition_model": FACES,
    }
    assert len(answer["result"]) == len(boxes) > 1
    align = oracle("insightface.utils.face_align").norm_crop
    for face, (x1, y1, x2, y2, score), points in zip(answer["result"], boxes, landmarks, strict=True):
        area = face["facial_area"]
        assert all(type(value) is int for value in area.values())
        found = np.array([area["x"], area["y"], area["x"] + area["w"], area["y"] + area["h"]])
        assert np.abs(found - [x1, y1, x2, y2]).max() <= 1
        assert face["face_confidence"] == pytest.approx(score, abs=0.01)
        theirs = recognizer.get_feat(align(image, points))[0]
        assert np.linalg.norm(face["embedding"]) == pytest.approx(1, abs=1e-6)
        assert np.array(face["embedding"]) @ theirs / np.linalg.norm(theirs) >= 0.998


def test_a_photo_without_any_of_it(client: MtPhotos) -> None:
    plain = encoded(Image.new("RGB", (300, 200), "grey"))
    assert client.result("/ocr", plain) == {"texts": [], "scores": [], "boxes": []}
    assert client.result("/represent", plain) == []


# ---------------------------------------------------------------- photos that lie on their side


def turned(image: Image.Image, orientation: int) -> bytes:
    """Store an image so that only its EXIF says how it is to be seen."""
    ways = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    exif, buffer = Image.Exif(), BytesIO()
    exif[ORIENTATION] = orientation
    image.transpose(ways[orientation]).save(buffer, "JPEG", quality=95, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", [3, 6])
def test_photos_are_seen_as_their_exif_says(client: MtPhotos, server: Server, orientation: int) -> None:
    photo = page((480, 220), column(CHINESE[:2]))
    data = turned(photo, orientation)
    upright, seen = client.result("/ocr", encoded(photo)), client.result("/ocr", data)
    assert seen["texts"] == upright["texts"] == list(CHINESE[:2])
    for one, other in zip(seen["boxes"], upright["boxes"], strict=True):
        assert all(abs(float(one[name]) - float(other[name])) <= 4 for name in one)
    vectors = [np.array(client.result("/clip/img", each), float) for each in (encoded(photo), data)]
    assert vectors[0] @ vectors[1] > 0.999
    asked = {"ocr": {"detection": {"modelName": "PP-OCRv4_mobile"}, "recognition": {"modelName": "PP-OCRv4_mobile"}}}
    answer = server.predict(asked, data).json()
    expected = photo.size if orientation == 3 else photo.size[::-1]
    assert (answer["imageWidth"], answer["imageHeight"]) == expected, "Immich is answered as it always was"


# ---------------------------------------------------------------- the rest of the dialect


def test_what_says_that_it_is_there(client: MtPhotos, server: Server) -> None:
    check = client.post("/check")
    assert check.json()["result"] == "pass"
    assert set(check.json()) == {"result", "title", "help", "device"}
    face = httpx.get(f"{client.url}/face/check").json()
    assert (face["detector_backend"], face["recognition_model"]) == ("insightface", FACES)
    assert httpx.get(f"{client.url}/ping").text == "pong"
    welcome = httpx.get(client.url)
    assert "MT Photos" in welcome.text
    assert welcome.headers["content-type"] == "text/html; charset=utf-8"
    assert httpx.get(server.url).json() == {"message": "Immich ML"}


def test_the_ports_are_apart(client: MtPhotos, server: Server) -> None:
    assert MtPhotos(server.url).post("/check").status_code == 404
    assert httpx.post(f"{client.url}/predict").status_code == 404


@pytest.mark.parametrize("path", ["/ocr", "/clip/img", "/represent"])
@pytest.mark.parametrize("data", [b"", b"no picture", encoded(PAGE)[:200]], ids=["empty", "text", "cut"])
def test_a_photo_that_cannot_be_read_is_said_in_msg(client: MtPhotos, path: str, data: bytes) -> None:
    answer = client.post(path, data)
    assert (answer.status_code, answer.json()["result"]) == (200, [])
    assert answer.json()["msg"].startswith("The image ")


def test_a_query_without_words_is_said_in_msg(client: MtPhotos) -> None:
    answer = client.post("/clip/txt", json={"text": ""})
    assert answer.status_code == 200
    assert answer.json() == {"result": [], "msg": "Either image or text must be provided"}


def test_forms_without_a_photo_and_queries_that_are_none(client: MtPhotos) -> None:
    answer = client.post("/ocr", files={"image": b"x"})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "file"]
    for body in (b"", b"{}", b'{"text":1}', b"[", b'{"text":null}', b"\xff"):
        answer = client.post("/clip/txt", content=body)
        assert answer.status_code == 422, body
        assert answer.json()["detail"][0]["loc"][0] == "body", body
    answer = client.post("/clip/txt", json={"text": "x" * 70_000})
    assert answer.status_code == 413


def test_memory_is_given_back_on_request(client: MtPhotos, server: Server) -> None:
    client.result("/represent", encoded(PAGE))
    assert client.post("/restart").json() == {"result": "unsupported"}
    assert loaded(server)
    assert client.result("/restart_v2") == "pass"
    assert not loaded(server)
    assert client.result("/represent", encoded(PAGE)) == [], "and it works on"


@pytest.mark.parametrize(
    ("status", "holds", "said"), [(501, FACES, "unsupported"), (200, FACES, "pass"), (501, "", "pass")]
)
def test_memory_that_nobody_here_can_give_back_is_not_said_to_be(status: int, holds: str, said: str) -> None:
    """As on a Ray cluster, which refuses with a 501."""
    model = ModelStatus("facial-recognition", "detection", holds, "CPU", 1, 0, False)
    worker = WorkerStatus(1, 0, "none", "fp32", (model,) if holds else (), (), 0, None, 0.0, 0)
    backend = create_autospec(Backend, instance=True)
    backend.status.return_value.workers = (worker,)
    backend.change.return_value = Answer(status, b"{}")
    front = Front(create_autospec(ModelNames), backend, create_autospec(Readiness))
    limits, room = BodyLimits(64, 30.0), BodyRoom(512)
    router = create_mt_photos(Parts(front.answer, front.free, Requests(Settings()), KEY, "cpu", limits, room))
    app = create_mt_photos_app(router, lambda: None, "cpu")

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            return await client.post("/restart_v2", headers={"api-key": KEY})

    assert asyncio.run(ask()).json() == {"result": said}


def loaded(server: Server) -> list[Any]:
    """The models in memory, once the workers have told."""
    time.sleep(2 * HEARTBEAT_S)
    return [model for model in httpx.get(f"{server.url}/health").json()["models"] if model["state"] == "loaded"]


def test_requests_are_counted_and_bear_an_id(client: MtPhotos, server: Server) -> None:
    answer = client.post("/ocr", b"no picture")
    assert len(answer.headers["x-request-id"]) == 16
    assert 'immich_ml_requests_total{status="200",task="ocr"}' in httpx.get(f"{server.url}/metrics").text


# ---------------------------------------------------------------- who may ask


@pytest.mark.parametrize("path", ["/check", "/ocr", "/clip/img", "/clip/txt", "/represent", "/restart", "/restart_v2"])
def test_every_order_needs_the_key(client: MtPhotos, path: str) -> None:
    answer = MtPhotos(client.url, "another").post(path)
    assert (answer.status_code, answer.json()) == (401, {"detail": "Invalid API key"})
    answer = MtPhotos(client.url, None).post(path)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["header", "api-key"]


def test_a_strangers_photo_is_not_received(client: MtPhotos) -> None:
    head = b"POST /ocr HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\napi-key: wrong\r\n\r\n"
    answer = exchange(int(client.url.rpartition(":")[2]), head)
    assert answer.startswith(b"HTTP/1.1 401 "), "before a byte of it was sent"


def test_the_key_is_written_nowhere(client: MtPhotos, server: Server) -> None:
    client.post("/check")
    log = server.log.read_text()
    assert "API_AUTH_KEY is understood as MACHINE_LEARNING_MT_PHOTOS_API_KEY\n" in log
    assert KEY not in log


def asked(key: str | None, client: str | None, headers: dict[str, str]) -> str:
    """What the key's keeper says to a request from an address: its error's name, or nothing."""
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"type": "http", "headers": raw, "client": None if client is None else (client, 5000)}
    try:
        ApiKey(key)(Request(scope))
    except BodyError as error:
        return f"{error.status}"
    return ""


LOCAL = st.sampled_from(["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"])
FAR = (
    st.ip_addresses()
    .filter(lambda address: not address.is_loopback)
    .map(str)
    .filter(lambda address: not address.startswith("::ffff:"))
)


@given(LOCAL, FAR)
def test_without_a_key_only_this_machine_is_answered(local: str, far: str) -> None:
    assert asked(None, local, {}) == ""
    assert asked(None, local, {"api-key": "anything"}) == ""
    for foreign in ("forwarded", "x-forwarded-for", "x-real-ip", "via", "origin"):
        assert asked(None, local, {foreign: "x"}) == "401", "a proxy's, or a web page's"
    assert asked(None, far, {}) == asked(None, f"{far}", {"api-key": ""}) == asked(None, None, {}) == "401"
    assert asked(None, "fe80::1%eth0", {}) == "401"


@given(st.text("abc", min_size=1), st.text(min_size=0, max_size=5).filter(lambda text: text.isascii()))
def test_only_the_key_opens(key: str, other: str) -> None:
    assert asked(key, "10.0.0.1", {"api-key": key}) == ""
    assert asked(key, "127.0.0.1", {"api-key": other}) == ("" if other == key else "401")


def test_one_port_for_both_behind_the_access_token(cache: Path, tmp_path: Path) -> None:
    variables = {
        "MACHINE_LEARNING_MT_PHOTOS": "true",
        "MACHINE_LEARNING_MT_PHOTOS_PORT": "0",
        "MACHINE_LEARNING_MT_PHOTOS_FACE_MODEL": FACES,
        "MACHINE_LEARNING_ACCESS_TOKEN": "token",
    }
    with running_server(cache, tmp_path, variables, root="/token") as server:
        assert MtPhotos(server.url, None).post("/check").status_code == 404
        inside = MtPhotos(f"{server.url}/token", None)
        assert inside.post("/check").json()["result"] == "pass"
        assert inside.result("/represent", encoded(Image.new("RGB", (64, 64)))) == []
        assert httpx.get(f"{server.url}/token/").json() == {"message": "Immich ML"}, "its own, not a page"
        face = f"{inside.url}/face/check"
        assert httpx.get(face).json()["recognition_model"] == FACES
        assert httpx.get(face, headers={"x-forwarded-for": "10.0.0.1"}).status_code == 401
        assert "MT Photos is answered on this machine alone" in server.log.read_text()


# ---------------------------------------------------------------- small pieces


@given(st.lists(st.lists(st.floats(0, 1, width=32), min_size=8, max_size=8), max_size=4))
def test_boxes_hold_their_corners(quads: list[list[float]]) -> None:
    boxes = upright_boxes([value for quad in quads for value in quad], (200, 100))
    assert len(boxes) == len(quads)
    for (left, top, right, bottom), quad in zip(boxes, quads, strict=True):
        xs, ys = [200 * x for x in quad[0::2]], [100 * y for y in quad[1::2]]
        assert (left, top, right, bottom) == (min(xs), min(ys), max(xs), max(ys))
