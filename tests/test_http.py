"""The HTTP face before an answerer of the test's own: its endpoints, and forms of every kind."""

import tempfile
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from immich_ml_compat.messages import PredictRequest

from .http_face import (
    BAD_FORMS,
    CHARSETS,
    ENTRIES,
    GOOD,
    IMAGE,
    MULTIPART,
    UNFINISHED_PART,
    URLENCODED,
    Face,
    Recorder,
    field,
    form,
    serving,
)

FIELD_REQUIRED = [{"type": "missing", "loc": ["body", "entries"], "msg": "Field required", "input": None}]


@pytest.fixture(scope="module")
def face() -> Iterator[Face]:
    recorder = Recorder()
    with serving(recorder) as url:
        yield Face(url, recorder)


# ---------------------------------------------------------------- the small endpoints


def test_root_and_ping(face: Face) -> None:
    root, ping = httpx.get(f"{face.url}/"), httpx.get(f"{face.url}/ping")
    assert (root.status_code, root.content) == (200, b'{"message":"Immich ML"}')
    assert root.headers["content-type"] == "application/json"
    assert (ping.status_code, ping.content) == (200, b"pong")
    assert ping.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("path", ["/nope", "/predict/nope", "/ping/nope", "//", "/%00", "/PING", "/" + "x" * 5000])
def test_unknown_paths(face: Face, path: str) -> None:
    response = httpx.get(face.url + path)
    assert (response.status_code, response.json()) == (404, {"detail": "Not Found"})


@pytest.mark.parametrize(
    ("method", "path"),
    [(method, "/predict") for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS")]
    + [("POST", "/"), ("POST", "/ping"), ("DELETE", "/ping")],
)
def test_other_methods(face: Face, method: str, path: str) -> None:
    response = httpx.request(method, face.url + path)
    assert (response.status_code, response.json()) == (405, {"detail": "Method Not Allowed"})


def test_head_is_refused_as_by_the_stock_server(face: Face) -> None:
    assert [httpx.head(face.url + path).status_code for path in ("/", "/ping", "/predict")] == [405, 405, 405]


def test_documentation(face: Face) -> None:
    document = httpx.get(f"{face.url}/openapi.json").json()
    assert set(document["paths"]) == {"/", "/ping", "/predict"}
    body = document["paths"]["/predict"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(body["properties"]) == {"entries", "image", "text"}
    assert body["required"] == ["entries"]
    assert set(document["paths"]["/predict"]["post"]["responses"]) == {
        *("200", "400", "408", "413", "422", "499", "500", "503")
    }
    assert set(document["paths"]["/ping"]["get"]["responses"]) == {"200", "503"}
    for path in ("/docs", "/redoc"):
        page = httpx.get(face.url + path)
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        assert "openapi.json" in page.text


# ---------------------------------------------------------------- good forms


def test_a_form_as_immich_sends_it(face: Face) -> None:
    assert face.asked(form(GOOD, IMAGE)) == PredictRequest(ENTRIES, b"\xff\0\r\npixels", None)
    assert face.asked(form(GOOD, field("text", "海边 🏖"))) == PredictRequest(ENTRIES, None, "海边 🏖")


def test_other_good_forms(face: Face) -> None:
    both = form(GOOD, IMAGE, field("text", "x"))
    assert face.asked(both) == PredictRequest(ENTRIES, b"\xff\0\r\npixels", "x"), "who wins is not decided here"
    assert face.asked(form(field("entries", "{"), GOOD)).entries == ENTRIES, "the last one wins"
    assert face.asked(form(GOOD, field("entries", "{"))).entries == "{"
    assert face.asked(form(IMAGE, GOOD, field("zzz", "1"), field("zzz", "1", '; filename="a"'))).entries == ENTRIES
    assert face.asked(form(GOOD, field("image", "as text"))).image == b"as text"
    assert face.asked(form(GOOD, field("text", ""))).text == ""
    assert face.asked(form(GOOD, field("image", b"", '; filename="blob"'))).image == b""
    assert face.asked(form(GOOD, field("text", b"caf\xe9"))).text == "café", "not UTF-8: read as Latin-1"
    assert face.asked(form(GOOD) + b"epilogue").entries == ENTRIES
    assert face.asked(form(field("entries", "not JSON"))).entries == "not JSON", "nor is what it says"


@pytest.mark.parametrize(
    "content_type",
    [MULTIPART.upper(), 'multipart/form-data;boundary="B"', f"{MULTIPART}; charset=utf-8"],
)
def test_ways_to_write_the_content_type(face: Face, content_type: str) -> None:
    assert face.asked(form(GOOD), content_type).entries == ENTRIES


def test_urlencoded(face: Face) -> None:
    body = b"entries=%7B%7D&text=%E6%B5%B7+x&text=%E6%B5%B7+y"
    assert face.asked(body, URLENCODED) == PredictRequest("{}", None, "海 y")
    assert face.asked(body, f"{URLENCODED}; charset=utf-8").text == "海 y"


def test_a_chunked_body_in_small_pieces(face: Face) -> None:
    body = form(GOOD, IMAGE)
    assert face.asked(bytes([byte]) for byte in body) == PredictRequest(ENTRIES, b"\xff\0\r\npixels", None)


def test_an_upload_is_held_in_memory(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_file(*_: object) -> None:
        raise AssertionError("a temporary file")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", no_file)
    image = bytes(range(256)) * (8 * 4096)
    assert len(image) == 8 * 2**20
    assert face.asked(form(GOOD, field("image", image, '; filename="blob"'))).image == image


# ---------------------------------------------------------------- bad forms


def test_missing_entries(face: Face) -> None:
    for body in (form(IMAGE), form(field("entries", "")), form(field("Entries", ENTRIES)), b"", form()):
        response = face.post(body, MULTIPART)
        assert (response.status_code, response.json()) == (422, {"detail": FIELD_REQUIRED})
    for content_type in (
        None,
        "application/json",
        "text/plain",
        "multipart/mixed; boundary=B",
        "",
        "nonsense",
        ";;;=",
        "*/*",
    ):
        response = face.post(form(GOOD), content_type)
        assert (response.status_code, response.json()) == (422, {"detail": FIELD_REQUIRED}), content_type
    for body in (b"", b"text=a", b"entries=", b"entries", b"&&;;==%%%zz\xff\0"):
        assert face.post(body, URLENCODED).json() == {"detail": FIELD_REQUIRED}


@pytest.mark.parametrize("name", ["entries", "text"])
def test_a_file_in_place_of_a_field(face: Face, name: str) -> None:
    response = face.post(form(GOOD, field(name, ENTRIES, '; filename="a"')), MULTIPART)
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", name]


@UNFINISHED_PART
@pytest.mark.parametrize("label", BAD_FORMS)
def test_bad_forms(face: Face, label: str) -> None:
    content_type, body = BAD_FORMS[label]
    face.recorder.requests.clear()
    response = face.post(body, content_type)
    assert response.status_code in (400, 422), response.text
    assert response.json()["detail"]
    assert face.recorder.requests == []
    face.still_answers()


@pytest.mark.parametrize("charset", [*CHARSETS, "utf-32", "mbcs", "x" * 5000, "\\x00", "hex", "rot13"])
@pytest.mark.parametrize("name", ["text", "image", "entries"])
def test_charsets(face: Face, charset: str, name: str) -> None:
    for value in (b"\xff\xfe\\ud800", b"+2AA-", b"\\udfff \\N{SPACE}", b"plain"):
        face.recorder.requests.clear()
        response = face.post(form(GOOD, field(name, value)), f"{MULTIPART}; charset={charset}")
        assert response.status_code in (200, 400, 422)
        for request in face.recorder.requests:  # what is let through can be written down
            (request.entries + (request.text or "")).encode()


@pytest.mark.parametrize("charset", ["punycode", "PunyCode", "idna", '"punycode"', "utf-8; charset=punycode"])
def test_a_charset_that_takes_minutes_to_decode_is_refused(face: Face, charset: str) -> None:
    for value in (b"plain", b"a" * 1_000_000):
        response = face.post(form(GOOD, field("text", value)), f"{MULTIPART}; charset={charset}")
        assert (response.status_code, "charset" in response.json()["detail"]) == (400, True)


@UNFINISHED_PART
@given(
    body=st.binary(max_size=60)
    | st.lists(st.sampled_from([b"--B", b"\r\n", b"--", GOOD, b"\r", b"\n", IMAGE, b":", b"\0", b"--C"])).map(b"".join),
    content_type=st.sampled_from(
        [MULTIPART, URLENCODED, "multipart/form-data; boundary=--B", f"{MULTIPART}; charset=utf-16"]
    ),
)
@settings(max_examples=100, deadline=None)
def test_any_body(face: Face, body: bytes, content_type: str) -> None:
    response = face.post(body, content_type)
    assert response.status_code in (200, 400, 422)
    assert response.json()
