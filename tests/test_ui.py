"""The page at `/ui`, in a real browser before a real server, and what is behind it."""

import base64
import json
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from selenium.webdriver import Chrome
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from immich_ml_compat import timing, ui_api
from immich_ml_compat.catalog import IMMICH_NAMES
from immich_ml_compat.http_api import server_timing
from immich_ml_compat.messages import Answer

from .browser import command, dark, phone, running_browser, speak
from .model_folders import CLIP, FACES
from .oracles import packaged
from .pages import encoded, page
from .server import Server, running_server

TOKEN = "a-token"
MARKUP = "<img src=x onerror=alert(1)>"
PAIR = {"modelName": "PP-OCRv6_small"}
ENTRIES = {
    "ocr": {"detection": PAIR, "recognition": PAIR},
    "facial-recognition": {"detection": {"modelName": FACES}, "recognition": {"modelName": FACES}},
    "clip": {"visual": {"modelName": CLIP}},
}
DETECTION = {"task": "ocr", "type": "detection", "name": "PP-OCRv6_small"}


@pytest.fixture(scope="module")
def root(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with the page, behind a token."""
    settings = {
        "UI": "true",
        "ACCESS_TOKEN": TOKEN,
        "MODEL_ALIASES": json.dumps({MARKUP: "PP-OCRv6_small"}),
    }
    environment = {f"MACHINE_LEARNING_{name}": value for name, value in settings.items()}
    with running_server(cache, tmp_path_factory.mktemp("ui"), environment, root=f"/{TOKEN}") as server:
        yield f"{server.url}/{TOKEN}"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with running_browser(tmp_path_factory.mktemp("browser") / "profile") as chrome:
        yield chrome


@pytest.fixture
def chrome(browser: Chrome, root: str) -> Iterator[Chrome]:
    """The browser with the page open, in English; in the end nothing was refused or went wrong in it."""
    speak(browser, "en-GB")
    open_page(browser, root)
    yield browser
    assert complaints(browser, but="nothing at all") == []


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Faces below lines of text, one of which is markup, in a file whose name is some as well."""
    faces = Image.open(packaged("insightface", "data/images/t1.jpg")).convert("RGB").reduce(2)
    text = page((faces.width, 130), [((30, 15), "Birthday 2026"), ((30, 70), MARKUP)], text_size=28)
    both = Image.new("RGB", (faces.width, faces.height + text.height))
    both.paste(text)
    both.paste(faces, (0, text.height))
    path = tmp_path_factory.mktemp("photo") / f"{MARKUP}.png"
    path.write_bytes(encoded(both))
    return path


def open_page(chrome: Chrome, root: str) -> None:
    chrome.get(f"{root}/ui")
    wait(chrome, lambda: text_of(chrome, "#state").strip() != "")
    wait(chrome, lambda: count(chrome, "#tasks input") > 0)


def wait(chrome: Chrome, true: Callable[[], object]) -> None:
    WebDriverWait(chrome, 60, 0.05).until(lambda _: true())


def find(chrome: Chrome, selector: str) -> list[WebElement]:
    return chrome.find_elements("css selector", selector)


def text_of(chrome: Chrome, selector: str) -> str:
    return "\n".join(element.text for element in find(chrome, selector))


def count(chrome: Chrome, selector: str) -> int:
    return len(find(chrome, selector))


def write(chrome: Chrome, selector: str, text: str) -> None:
    (element,) = find(chrome, selector)
    element.clear()
    element.send_keys(text)


def press(chrome: Chrome, selector: str) -> None:
    (element,) = find(chrome, selector)
    element.click()


def compared(chrome: Chrome, query: str) -> list[str]:
    """Return the cosine that the page shows for a text."""
    return re.findall(rf"{re.escape(query)}\ncos (-?[\d.]+)", text_of(chrome, "#cosines"))


def complaints(chrome: Chrome, but: str) -> list[str]:
    """Return what the browser complained of since it was last asked, less what was to be."""
    messages = [entry["message"] for entry in chrome.get_log("browser")]  # type: ignore[no-untyped-call]
    return [message for message in messages if but not in message]


def loaded(root: str) -> set[tuple[str, str, str]]:
    workers = httpx.get(f"{root}/ui/status").json()["workers"]
    return {(model["task"], model["type"], model["name"]) for worker in workers for model in worker["models"]}


def predict(root: str, entries: Any, **parts: Any) -> Any:
    return httpx.post(f"{root}/predict", files={"entries": (None, json.dumps(entries)), **parts}, timeout=60).json()


def change(root: str, action: str, **what: str) -> httpx.Response:
    return httpx.post(f"{root}/ui/models", json={"action": action, **DETECTION, **what}, timeout=60)


# ---------------------------------------------------------------- the page


def test_a_model_is_preloaded_and_unloaded(chrome: Chrome, root: str) -> None:
    assert "well" in text_of(chrome, "#state")
    press(chrome, "#kind option[value='ocr/detection']")
    write(chrome, "#name", "PP-OCRv6_small")
    press(chrome, "#preload button")
    wait(chrome, lambda: text_of(chrome, "#said").startswith("Loaded PP-OCRv6_small"))
    wait(chrome, lambda: "stays" in text_of(chrome, ".model"))
    assert loaded(root) == {("ocr", "detection", "PP-OCRv6_small")}
    shown = text_of(chrome, ".worker")
    for what in ("PP-OCRv6_small", "OCR, detection", "CPUExecutionProvider", "ONNX Runtime on cpu"):
        assert what in shown
    assert text_of(chrome, ".where") == "CPU"
    press(chrome, ".model button")
    wait(chrome, lambda: text_of(chrome, "#said").startswith("Unloaded PP-OCRv6_small"))
    wait(chrome, lambda: count(chrome, ".model") == 0)
    assert loaded(root) == set()


def test_memory_is_that_of_all_processes(chrome: Chrome, root: str) -> None:
    """Without a worker too: then it is the front's."""

    def shown() -> float:
        (number,) = re.findall(r"^memory\n.*\n([\d.]+) MB$", text_of(chrome, "#plots"), re.MULTILINE)
        return float(number) * 1e6

    def held() -> float:
        status = httpx.get(f"{root}/ui/status").json()
        assert status["memory_bytes"] > 20e6
        return float(status["memory_bytes"] + sum(worker["memory_bytes"] for worker in status["workers"]))

    wait(chrome, lambda: shown() == pytest.approx(held(), rel=0.05))


def test_what_cannot_be_preloaded_is_told(chrome: Chrome) -> None:
    write(chrome, "#name", MARKUP)
    press(chrome, "#preload button")
    wait(chrome, lambda: "Unknown model for clip" in text_of(chrome, "#said"))
    assert MARKUP in text_of(chrome, "#said")
    assert complaints(chrome, but="422 (Unprocessable Entity)") == []


def test_what_a_photo_holds_is_drawn_over_it(chrome: Chrome, root: str, photo: Path) -> None:
    for task, name in (("ocr", "PP-OCRv6_small"), ("facial-recognition", FACES), ("clip", CLIP)):
        write(chrome, f"#model-{task}", name)
    find(chrome, "#file")[0].send_keys(str(photo))
    wait(chrome, lambda: find(chrome, "#result")[0].is_displayed())
    answer = predict(root, ENTRIES, image=photo.read_bytes())
    width, height = answer["imageWidth"], answer["imageHeight"]
    assert [find(chrome, "#picture img")[0].get_property(side) for side in ("naturalWidth", "naturalHeight")] == [
        width,
        height,
    ]
    lines = [line.rpartition(" ")[0] for line in text_of(chrome, "#lines").splitlines()]
    assert lines == answer["ocr"]["text"]
    assert any("<img" in line for line in lines)
    drawn = [polygon.get_attribute("points") or "" for polygon in find(chrome, "#picture polygon")]
    corners = np.array([[float(part) for part in points.split()] for points in drawn]).reshape(-1)
    expected = np.array(answer["ocr"]["box"]) * np.tile([width, height], len(corners) // 2)
    np.testing.assert_allclose(corners, expected, atol=0.06)
    faces = [[float(rect.get_attribute(name) or "") for name in ("x", "y")] for rect in find(chrome, "#picture rect")]
    boxes = [face["boundingBox"] for face in answer["facial-recognition"]]
    assert len(boxes) > 3
    np.testing.assert_allclose(faces, [[box["x1"], box["y1"]] for box in boxes], atol=0.01)
    times = text_of(chrome, "#picture .time")
    assert re.fullmatch(r"Faces [\d.]+ ms · OCR [\d.]+ ms · CLIP [\d.]+ ms · round trip [\d.]+ ms", times)
    rows = text_of(chrome, "#timings").splitlines()
    assert [" ".join(rows[at : at + 2]) for at in (0, 3, 6, 9)] == times.split(" · "), "each task, then its stages"
    assert all("inference" in rows[at] for at in (2, 5, 8))
    assert photo.name in text_of(chrome, "#caption")

    embedding = np.array(json.loads(answer["clip"]))
    for query in ("people at a table", MARKUP):
        write(chrome, "#query", query)
        press(chrome, "#compare button")
        wait(chrome, partial(compared, chrome, query))
        answer = predict(root, {"clip": {"textual": {"modelName": CLIP}}}, text=(None, query))
        text = np.array(json.loads(answer["clip"]))
        cosine = embedding @ text / np.linalg.norm(embedding) / np.linalg.norm(text)
        assert float(compared(chrome, query)[0]) == pytest.approx(cosine, abs=1e-4)
    wait(chrome, lambda: MARKUP in text_of(chrome, "#substitutions"))
    assert count(chrome, "img") == 1, "the photo: whatever came as text is text"


def test_a_photo_is_dropped(chrome: Chrome, photo: Path) -> None:
    for task in ("facial-recognition", "clip"):
        press(chrome, f"#do-{task}")
    drop = """
        const data = new DataTransfer();
        data.items.add(new File([Uint8Array.fromBase64(arguments[0])], "dropped.png", {type: "image/png"}));
        const event = new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true});
        document.getElementById("drop").dispatchEvent(event);
        return event.defaultPrevented;
    """
    page_of_text = base64.b64encode(encoded(page((400, 100), [((40, 30), "dropped")]))).decode()
    assert chrome.execute_script(drop, page_of_text)
    wait(chrome, lambda: "dropped" in text_of(chrome, "#lines"))
    assert text_of(chrome, "#outcome") == "lines of text: 1"
    assert not find(chrome, "#compare")[0].is_displayed(), "no vector was asked for"
    no_image = base64.b64encode(b"GIF89a").decode()
    chrome.execute_script(drop, no_image)
    wait(chrome, lambda: "bad" in (find(chrome, "#outcome")[0].get_attribute("class") or ""))
    assert not find(chrome, "#result")[0].is_displayed()
    assert complaints(chrome, but="400 (Bad Request)") == []


def test_the_page_asks_only_while_it_is_seen(chrome: Chrome) -> None:
    asked = "return performance.getEntriesByType('resource').filter(e => e.name.endsWith('/ui/status')).length"
    hide = """
        Object.defineProperty(document, "hidden", {value: arguments[0], configurable: true});
        document.dispatchEvent(new Event("visibilitychange"));
    """
    wait(chrome, lambda: chrome.execute_script(asked) >= 2)
    chrome.execute_script(hide, True)
    pause = "const done = arguments[0]; setTimeout(done, 1500)"
    chrome.execute_async_script("const done = arguments[0]; setTimeout(done, 300)")
    before = chrome.execute_script(asked)
    chrome.execute_async_script(pause)
    assert chrome.execute_script(asked) == before
    chrome.execute_script(hide, False)
    wait(chrome, lambda: chrome.execute_script(asked) > before)


def test_it_speaks_chinese_and_fits_a_phone_in_the_dark(chrome: Chrome, root: str) -> None:
    light = find(chrome, "body")[0].value_of_css_property("background-color")
    assert "Models in memory" in text_of(chrome, "h2")
    change(root, "load", task="facial-recognition", name="buffalo_l")  # an error with a long path in it
    speak(chrome, "zh-CN")
    dark(chrome, True)
    phone(chrome)
    try:
        open_page(chrome, root)
        wait(chrome, lambda: "buffalo_l" in text_of(chrome, ".worker .bad"))
        assert text_of(chrome, "h2").splitlines() == ["内存中的模型", "试一张照片"]
        left = set(re.findall("[A-Za-z]+", text_of(chrome, "header, h2, label, button, .plot")))
        assert left <= {"Immich", "ML", "CLIP", "OCR", "MB"}
        assert find(chrome, "body")[0].value_of_css_property("background-color") != light
        assert chrome.execute_script("return document.documentElement.scrollWidth") == 390
    finally:
        dark(chrome, False)
        command(chrome, "Emulation.clearDeviceMetricsOverride")


def test_every_word_of_the_page_has_its_chinese() -> None:
    sources = {path.name: path.read_text(encoding="utf-8") for path in (Path(ui_api.__file__).parent / "ui").iterdir()}
    chinese = set(re.findall(r'^  "(.+?)": ".+",$', sources["words.js"], re.MULTILINE))
    scripts = "".join(source for name, source in sources.items() if name.endswith(".js") and name != "words.js")
    words = set(re.findall(r'\bt\("(.+?)"[,)]', scripts)) | set(re.findall(r'new Plot\("(.+?)"', scripts))
    words |= set(re.findall(r"data-t>(.+?)<", sources["index.html"]))
    words |= {stage for name, stage in vars(timing).items() if name.isupper() and isinstance(stage, str)}
    assert len(words) > 40
    assert words <= chinese
    assert "innerHTML" not in scripts


# ---------------------------------------------------------------- what is behind it


def test_without_the_setting_there_is_nothing(server: Server) -> None:
    unknown = httpx.get(f"{server.url}/nothing")
    for path in ("/ui", "/ui/", "/ui/status", "/ui/models", "/ui/page.js"):
        answer = httpx.get(f"{server.url}{path}")
        assert (answer.status_code, answer.content) == (unknown.status_code, unknown.content) == (404, unknown.content)
        assert httpx.post(f"{server.url}{path}", json={}).status_code == 404
    assert not any(path.startswith("/ui") for path in httpx.get(f"{server.url}/openapi.json").json()["paths"])
    assert "server-timing" not in server.predict({"clip": {"textual": {"modelName": CLIP}}}, text="x").headers


def test_strangers_get_nothing_of_the_page(root: str) -> None:
    for path in ("/ui", "/ui/status", "/ui/page.js"):
        assert httpx.get(root.removesuffix(f"/{TOKEN}") + path).status_code == 404


def test_every_file_is_sent_with_the_policy(root: str) -> None:
    html = httpx.get(f"{root}/ui")
    assert "://" not in html.text, "nothing from elsewhere"
    assert not re.search(r"\s(style|on\w+)=|<script>", html.text), "nothing that the policy forbids"
    addresses = re.findall(r'(?:src|href)="([^"]+)"', html.text)
    assert len(addresses) == 3
    assert all(address.startswith("ui/") for address in addresses), "relative: the token is before it"
    for address in ("ui", *addresses, *(f"ui/{name}.js" for name in ("dom", "words", "plots", "photo", "models"))):
        answer = httpx.get(f"{root}/{address}")
        assert answer.status_code == 200
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
    assert httpx.get(f"{root}/ui/ui_api.py").status_code == 404
    slash = httpx.get(f"{root}/ui/")
    assert str(slash.url.join(slash.headers["location"])) == f"{root}/ui"


def test_another_site_can_change_nothing(root: str) -> None:
    body = json.dumps({"action": "load", **DETECTION})
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        answer = httpx.post(f"{root}/ui/models", content=body, headers={"Content-Type": kind})
        assert answer.status_code == 415
    preflight = {"Origin": "http://elsewhere", "Access-Control-Request-Method": "POST"}
    answer = httpx.options(f"{root}/ui/models", headers={**preflight, "Access-Control-Request-Headers": "content-type"})
    assert answer.status_code == 405
    assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize(
    ("order", "status", "detail"),
    [
        ({"name": "nobody"}, 422, "Unknown model for ocr: 'nobody'."),
        ({"type": "visual"}, 422, "A model for ocr has no visual graph"),
        ({"task": "cooking"}, 422, "task: Input should be"),
        ({"name": ""}, 422, "name: String should have"),
        ({"colour": "red"}, 422, "colour: Extra inputs"),
        ({"task": "facial-recognition", "name": "buffalo_l"}, 500, "buffalo_l"),
    ],
)
def test_an_order_that_cannot_be_carried_out_says_why(root: str, order: Any, status: int, detail: str) -> None:
    answer = change(root, "load", **order)
    assert answer.status_code == status
    assert detail in answer.json()["detail"]


def test_a_long_order_is_refused_before_anybody_looks_at_it(root: str) -> None:
    body = json.dumps({"action": "load", **DETECTION} | {f"colour {number}": "red" for number in range(2000)})
    answer = httpx.post(f"{root}/ui/models", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()) == (
        413,
        {"detail": "The body has more than 16384 bytes, the most that is taken here"},
    )
    assert answer.headers["connection"] == "close"


def test_orders_are_answered_when_they_are_done(root: str) -> None:
    assert change(root, "load", name=MARKUP).status_code == 200
    wait_for(lambda: loaded(root) >= {("ocr", "detection", "PP-OCRv6_small")})
    for _ in range(2):  # what is not there is unloaded already
        assert change(root, "unload").status_code == 200
    wait_for(lambda: ("ocr", "detection", "PP-OCRv6_small") not in loaded(root))


def wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_models_to_choose_from_are_those_on_disk_and_those_known(root: str) -> None:
    known = httpx.get(f"{root}/ui/models").json()
    for task, names in IMMICH_NAMES.items():
        assert names <= {model["name"] for model in known[task]["names"]}
    assert [model["name"] for model in known["facial-recognition"]["names"] if model["here"]] == [FACES]


def test_the_references_of_the_openapi_document_lead_somewhere(root: str) -> None:
    document = httpx.get(f"{root}/openapi.json")
    references = re.findall(r'"\$ref": *"#/([^"]+)"', document.text)
    assert len(references) > 3
    for reference in references:
        place = document.json()
        for name in reference.split("/"):
            place = place[name]


def test_stages_are_written_as_server_timing() -> None:
    answer = Answer(200, b"", stages={"ocr": {"detection": 0.0421, "reading": 1.5}, "clip": {"run": 0.0}})
    assert server_timing(answer) == "ocr.detection;dur=42.1, ocr.reading;dur=1500.0, clip.run;dur=0.0"
