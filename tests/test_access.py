"""Who may ask: the access token, before an application of the test's own and before the whole server."""

import json
import re
import string
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from starlette.types import Message, Receive, Scope, Send

from immich_ml_compat.access import Access
from immich_ml_compat.cli import main
from immich_ml_compat.settings import ConfigurationError, load_settings

from .model_folders import CLIP
from .server import Server, exchange, running_server

VARIABLE = "MACHINE_LEARNING_ACCESS_TOKEN"
TOKEN = "Kd8.s_e~c+r=e-t"
TOKENS = st.text(string.ascii_letters + string.digits + "-._~+=", min_size=1, max_size=40).filter(
    lambda token: token not in (".", "..")
)


def ask(token: str, path: str, headers: list[tuple[bytes, bytes]] | None = None) -> tuple[str | None, list[Message]]:
    """Send a request past a token; return the path that the application behind it routes by, if any, and the answer."""
    reached: list[str] = []
    sent: list[Message] = []

    async def application(scope: Scope, _: Receive, __: Send) -> None:
        reached.append(scope["path"].removeprefix(scope["root_path"]))

    async def receive() -> Message:
        raise AssertionError("nobody reads a stranger's body")

    async def send(message: Message) -> None:
        sent.append(message)

    scope: dict[str, Any] = {"type": "http", "path": path, "root_path": "", "headers": headers or []}
    with suppress(StopIteration):
        asking: Coroutine[Any, Any, None] = Access(application, token)(scope, receive, send)
        asking.send(None)  # it waits for nothing
    return (reached[0] if reached else None), sent


# ---------------------------------------------------------------- what is let through


@given(TOKENS, st.sampled_from(["ping", "predict", "", "openapi.json"]), st.sampled_from(["/", "//"]))
def test_the_address_immich_makes_reaches_the_application(token: str, endpoint: str, slashes: str) -> None:
    address = urljoin(f"http://host:3003/{token}/", endpoint)
    assert address == f"http://host:3003/{token}/{endpoint}", "nothing in a token is special in an address"
    assert quote(token, safe="+=") == token, "and no client escapes it"
    path = urlsplit(address).path
    for variant in (path, "/" + path, path.replace(f"{token}/", f"{token}{slashes}")):
        assert ask(token, variant) == (f"/{endpoint}", [])


@given(TOKENS, st.sampled_from(["Bearer", "bearer", "BEARER"]), st.text(string.printable))
def test_the_header_lets_any_path_through(token: str, scheme: str, path: str) -> None:
    headers = [(b"authorization", b"Basic eDp5"), (b"authorization", f"{scheme} {token}".encode())]
    reached, sent = ask(token, f"/z{path}", headers)
    assert (reached, sent) == (f"/z{path}", [])
    assert ask(token, "/z", [(b"x-auth-token", token.encode())]) == ("/z", []), "as the parent stack's clients send it"


@given(TOKENS, st.text(), st.text(), st.text())
def test_no_other_token_does(token: str, other: str, rest: str, header: str) -> None:
    _, usual = ask(token, "/")
    assert [message["type"] for message in usual] == ["http.response.start", "http.response.body"]
    assert usual[0]["status"] == 404
    if other.lstrip("/").partition("/")[0] != token and header.strip() != token:
        headers = [(b"authorization", b"Bearer " + header.encode()), (b"x-auth-token", header.encode())]
        assert ask(token, f"/{other}/{rest}", headers) == (None, usual)


@given(TOKENS, st.data())
def test_nor_one_that_is_nearly_right(token: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(token) - 1))
    character = data.draw(st.characters(exclude_categories=["Cs"], exclude_characters=token[place] + "/"))
    wrong = [token[:place] + character + token[place + 1 :], token[:place], token + token[-1], token + "/"]
    for near in wrong:
        if near.rstrip("/") != token:
            assert ask(token, f"/{near}/ping")[0] is None
        if near.strip() != token:
            assert ask(token, "/ping", [(b"authorization", b"Bearer " + near.encode())])[0] is None
    assert ask(token, f"/{token}")[0] is None, "the server answers below it"
    for value in (token, f"Basic {token}", f"Bearer{token}", f"Bearer {token} {token}", "Bearer", "Bearer "):
        assert ask(token, "/ping", [(b"authorization", value.encode())])[0] is None, value


# ---------------------------------------------------------------- tokens


@pytest.mark.parametrize(
    "token", ["a/b", "a b", " ", "a?b", "a#b", "a%41", "ä", "秘密", ".", "..", "a\\b", "a\nb", "a'b", "<", "x" * 257]
)
def test_tokens_that_cannot_stand_in_an_address(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv(VARIABLE, token)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    message = str(caught.value)
    assert re.fullmatch(rf"{VARIABLE}: takes 1 to 256 letters, digits and .* make one with .*", message)
    if len(token) > 2:
        assert token not in message + repr(caught.value.__cause__)


@given(TOKENS)
def test_tokens_are_kept_to_themselves(token: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, token)
        settings = load_settings()
    assert settings.access_token == SecretStr(token)
    assert f"'{token}'" not in repr(settings)


def test_no_command_says_a_bad_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(VARIABLE, "se/cret")
    assert main(["serve"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"{VARIABLE}: takes ")
    assert "cret" not in said


# ---------------------------------------------------------------- the whole server


@pytest.fixture(scope="module")
def guarded(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    variables = {VARIABLE: TOKEN, "IMMICH_LOG_LEVEL": "verbose"}
    with running_server(cache, tmp_path_factory.mktemp("server"), variables, root=f"/{TOKEN}") as server:
        yield server


def dateless(answer: bytes) -> bytes:
    return re.sub(rb"date: [^\r]*\r\n", b"", answer.replace(b"Connection: close", b"connection: close"))  # HTTP/1.0's


def request(method: str, target: str, *headers: str, version: str = "1.1", body: bytes = b"") -> bytes:
    lines = [f"{method} {target} HTTP/{version}", "Host: x", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


UPGRADE = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: eHh4eHh4eA==")
FORM = ("Content-Type: multipart/form-data; boundary=B",)
STRANGERS = {
    **{f"{method} {path}": request(method, path) for method in ("GET", "POST", "OPTIONS", "DELETE", "BREW")
       for path in ("/", "/ping", "/predict", "/docs", "/redoc", "/openapi.json", "/nope", "/ping/", "//", "/%00")},
    "absolute form": request("GET", "http://x/ping"),
    "absolute form with the token": request("GET", f"http://x/{TOKEN}/ping"),
    "connect": request("CONNECT", "x:443"),
    "http/1.0": request("GET", "/ping", version="1.0"),
    "websocket": request("GET", "/ping", *UPGRADE),
    "h2c": request("GET", "/ping", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAAA"),
    "a huge body announced": request("POST", "/predict", *FORM, "Content-Length: 99999999999999"),
    "a body cut short": request("POST", "/predict", *FORM, "Content-Length: 100", body=b"--B\r\n"),
    "an endless body": request("POST", "/predict", *FORM, "Transfer-Encoding: chunked", body=b"5\r\n--B\r\n\r\n"),
    "a client that waits": request("POST", "/predict", *FORM, "Content-Length: 9", "Expect: 100-continue"),
    "the token alone": request("GET", f"/{TOKEN}"),
    "another case": request("GET", f"/{TOKEN.swapcase()}/ping"),
    "in the query": request("GET", f"/ping?token={TOKEN}"),
    "further in": request("GET", f"/x/{TOKEN}/ping"),
    "around the corner": request("GET", f"/x/../{TOKEN}/ping"),
    "escaped twice": request("GET", f"/%25{ord(TOKEN[0]):02x}{TOKEN[1:]}/ping"),
    "not UTF-8": request("GET", "/%ff%fe/ping"),
    "a full-width token": request("GET", "/" + quote("Ｋ" + TOKEN[1:]) + "/ping"),
    "basic": request("GET", "/ping", "Authorization: Basic eDp5"),
    "a wrong bearer": request("GET", "/ping", "Authorization: Bearer nope"),
    "a bearer in bytes": request("GET", "/ping").replace(b"Host: x", b"Authorization: Bearer \xff\xfe\r\nHost: x"),
    "a long path": request("GET", "/" + "x" * 10_000),
}  # fmt: skip


@pytest.fixture(scope="module")
def refusal(guarded: Server) -> bytes:
    """What a stranger gets."""
    return dateless(exchange(guarded.port, request("GET", "/nope")))


@pytest.mark.parametrize("name", STRANGERS)
def test_every_stranger_gets_the_same(guarded: Server, refusal: bytes, name: str) -> None:
    head, _, body = refusal.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404 ")
    assert body == b'{"detail":"Not Found"}'
    assert dateless(exchange(guarded.port, STRANGERS[name])) == refusal, "and then the connection is closed"


def test_head_gets_the_same_without_the_body(guarded: Server, refusal: bytes) -> None:
    for path in ("/", "/ping", "/nope"):
        answer = dateless(exchange(guarded.port, request("HEAD", path)))
        assert answer == refusal.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"


def test_pipelined_requests_are_looked_at_one_by_one(guarded: Server, refusal: bytes) -> None:
    friend, stranger = request("GET", "/ping", f"Authorization: Bearer {TOKEN}"), request("GET", "/ping")
    first, rest = exchange(guarded.port, friend + stranger + friend).split(b"pong")
    assert first.startswith(b"HTTP/1.1 200")
    assert dateless(rest) == refusal, "the stranger's is the last"
    hidden = request("POST", "/ping", f"Content-Length: {len(friend)}", body=friend)
    assert dateless(exchange(guarded.port, hidden)) == refusal


@pytest.mark.parametrize(
    "root",
    [f"/{TOKEN}", f"//{TOKEN}", f"/{TOKEN}/", f"/%{ord(TOKEN[0]):02x}{TOKEN[1:]}", f"/{quote(TOKEN, safe='')}"],
)
def test_the_path_lets_in(guarded: Server, root: str) -> None:
    assert exchange(guarded.port, request("GET", f"{root}/ping", version="1.0")).endswith(b"\r\n\r\npong")
    for path, status in (("/", 200), ("/predict", 405), ("/nope", 404)):
        answer = exchange(guarded.port, request("GET", root + path, "Connection: close"))
        assert answer.startswith(f"HTTP/1.1 {status} ".encode()), path


@pytest.mark.parametrize("way", ["path", "header", "both"])
def test_a_whole_request_is_answered(guarded: Server, way: str) -> None:
    base = guarded.url if way == "header" else f"{guarded.url}/{TOKEN}"
    headers = {} if way == "path" else {"Authorization": f"Bearer {TOKEN}"}
    entries = json.dumps({"clip": {"textual": {"modelName": CLIP}}})
    with httpx.Client(base_url=base, headers=headers, timeout=120) as client:
        answer = client.post("/predict", files=[("entries", (None, entries)), ("text", (None, "sea"))])
        assert answer.status_code == 200
        assert len(json.loads(answer.json()["clip"])) == 512
        root = "" if way == "header" else f"/{TOKEN}"
        assert f"{root}/openapi.json" in client.get("/docs").text
        document = client.get("/openapi.json").json()
        assert document.get("servers", [{"url": ""}]) == [{"url": root}]
        assert client.get("/ping/", follow_redirects=True).text == "pong"


def test_the_token_is_in_no_log(guarded: Server) -> None:
    """Runs last in this file: all that was sent before is in the log or not."""
    port = guarded.port
    exchange(port, request("GET", f"/{TOKEN}/ping", "Connection: close"))
    exchange(port, request("GET", f"/{TOKEN}/ping", *UPGRADE, "X: close"), b"nonsense\r\n\r\n")
    exchange(port, f"GET /{TOKEN}/ping nonsense\r\n\r\n".encode())
    exchange(port, request("POST", f"/{TOKEN}/predict", *FORM, "Content-Length: 5", "Connection: close", body=b"hello"))
    log = guarded.log.read_text()
    assert "Only requests with the access token are answered" in log
    assert "Invalid HTTP request received." in log
    assert "DEBUG" in log, "not even there"
    for written in (TOKEN, quote(TOKEN, safe=""), TOKEN[1:]):
        assert written not in log
    assert "Traceback" not in log
