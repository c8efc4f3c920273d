"""Hypothesis strategies for what a client may send to `/predict`: entries of every kind, forms framed in every way."""

import json
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from .seeds import FORMATS, seeds

TYPES = {
    "clip": ("visual", "textual"),
    "facial-recognition": ("detection", "recognition"),
    "ocr": ("detection", "recognition"),
}
_INSTALLED = {"clip": ["ViT-B-32__openai"], "facial-recognition": ["buffalo_s"], "ocr": ["PP-OCRv5_mobile"]}
"""Names that have a model behind them: what is wrong with an answer is then the request's fault or the server's."""

_WRONG_NAMES = [
    "",
    "/",
    "..",
    "../..",
    "nope",
    "buffalo_s",
    "PP-OCRv5_mobile",
    "ViT-B-32__openai",
    "a" * 300,
    "\0",
    "é",
]


@dataclass(frozen=True)
class Form:
    """A request's entries, image and text; None leaves the field out."""

    entries: str | None
    image: bytes | None
    text: str | None

    def fields(self) -> list[tuple[str, Any]]:
        """Return the form's parts as httpx takes them."""
        found: list[tuple[str, Any]] = []
        if self.entries is not None:
            found.append(("entries", (None, self.entries.encode("utf-8", "surrogatepass"))))
        if self.image is not None:
            found.append(("image", ("blob", self.image, "application/octet-stream")))
        if self.text is not None:
            found.append(("text", (None, self.text.encode("utf-8", "surrogatepass"))))
        return found


@dataclass(frozen=True)
class Body:
    """A request's body as bytes, with its content type; `chunked` sends it without a length."""

    content_type: bytes
    data: bytes
    chunked: bool


# ---------------------------------------------------------------- entries

_ANY_TEXT = st.text(st.characters(), max_size=20)
_NUMBERS = st.floats() | st.integers() | st.sampled_from([0, 1, -1, 0.5, 1e30, -0.0, 2**53, 2**64, 10**400])
_LEAVES = st.none() | st.booleans() | _NUMBERS | _ANY_TEXT
_JSON = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_ANY_TEXT, inner, max_size=3), max_leaves=12
)
_OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "minScore": st.floats(0, 1) | _JSON,
        "maxResolution": st.integers(1, 2000) | _JSON,
        "orientation": st.booleans() | _JSON,
        "language": st.sampled_from(["zh-CN", "en", "de-AT", ""]) | _JSON,
        "minscore": _JSON,
    },
)


def _mostly(usual: st.SearchStrategy[Any], other: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Draw the usual, and one time in sixteen the other."""
    return st.integers(0, 15).flatmap(lambda number: other if number == 15 else usual)


def _entry(task: str) -> st.SearchStrategy[Any]:
    names = _mostly(st.sampled_from(_INSTALLED[task]), st.sampled_from(_WRONG_NAMES) | _JSON)
    return st.fixed_dictionaries({"modelName": names}, optional={"options": _mostly(_OPTIONS, _JSON), "extra": _JSON})


def _task(task: str) -> st.SearchStrategy[Any]:
    types: dict[str, Any] = {kind: _mostly(_entry(task), _JSON) for kind in TYPES[task]}
    some = st.fixed_dictionaries({}, optional=types | {"nope": _entry(task)})
    first, second = TYPES[task]
    return _mostly(st.fixed_dictionaries({first: types[first]}, optional={second: types[second]}), some)


_STRUCTURED = st.fixed_dictionaries({}, optional={task: _mostly(_task(task), _JSON) for task in TYPES})


@st.composite
def _damaged(draw: st.DrawFn) -> str:
    """JSON text with a stretch of it replaced."""
    text = json.dumps(draw(_STRUCTURED))
    start = draw(st.integers(0, len(text)))
    instead = draw(
        st.sampled_from(["", ",", "{", "}", "[", '"', "NaN", "1e999", '"clip":{},', "\0", "\ufeff", "\\ud800"])
    )
    return text[:start] + instead + text[start + draw(st.integers(0, 3)) :]


ENTRIES = _mostly(_STRUCTURED.map(json.dumps), _damaged() | _JSON.map(json.dumps) | st.text(max_size=60))
IMAGES = st.sampled_from([seeds(form)[0][1] for form in FORMATS])
FORMS = st.builds(
    Form,
    entries=_mostly(ENTRIES, st.none()),
    image=_mostly(IMAGES, st.none() | st.binary(max_size=50)),
    text=_mostly(st.none(), st.text(max_size=100)),
) | st.builds(Form, entries=ENTRIES, image=st.none(), text=st.text(max_size=100))

# ---------------------------------------------------------------- framing

_GOOD = json.dumps({"clip": {"visual": {"modelName": "ViT-B-32__openai"}}}).encode()
_HEADER_BYTES = st.binary(max_size=40).map(lambda data: data.replace(b"\r", b"").replace(b"\n", b""))
_PRINTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_categories=["Cc"]), max_size=80)
_BOUNDARIES = _mostly(
    st.just("B"), _PRINTABLE | st.sampled_from(["", "-", "--", "B ", "B" * 70, "B" * 300, '"B"', "B;C"])
)
_CHARSETS = st.sampled_from(
    ["utf-8", "latin-1", "utf-16", "utf-7", "unicode_escape", "undefined", "idna", "hex", "x", ""]
)
_NEWLINES = _mostly(st.just(b"\r\n"), st.sampled_from([b"\n", b"\r", b"\r\r\n", b""]))
_NAMES = st.sampled_from([b"entries", b"entries", b"image", b"image", b"text", b"", b"Entries", b"entries\xff", b"zzz"])
_DISPOSITIONS = st.sampled_from(
    [
        *(b'form-data; name="%b"; filename="blob"', b"form-data; name=%b", b"form-data; name*=utf-8''%b", b"%b"),
        *(
            b'attachment; name="%b"',
            b'form-data; name="%b',
            b'form-data; name="%b"; name="text"',
            b"form-data\0 name=%b",
        ),
        b"form-data; name=\"%b\"; filename*=undefined''%%ff",
    ]
)
_ODD_HEADERS = st.sampled_from(
    [
        *(b"Content-Type: text/plain; charset=utf-16", b"Content-Type: multipart/mixed; boundary=B", b"nonsense", b":"),
        *(b"Content-Transfer-Encoding: base64", b"Content-Length: -1", b" folded", b"X: " + b"a" * 100_000, b"X:"),
        b"\r\n".join(b"X-%d: a" % number for number in range(300)),
    ]
)


@st.composite
def _part(draw: st.DrawFn, newline: bytes, names: st.SearchStrategy[bytes]) -> bytes:
    name = draw(names)
    disposition = draw(_mostly(st.just(b'form-data; name="%b"'), _DISPOSITIONS)) % name
    if name == b"image" and draw(st.booleans()):
        disposition += b'; filename="blob"'
    headers = [
        b"Content-Disposition: " + disposition,
        *draw(_mostly(st.just([]), st.lists(_ODD_HEADERS | _HEADER_BYTES))),
    ]
    usual = IMAGES if name == b"image" else st.just(_GOOD)
    return newline.join([*headers, b"", draw(_mostly(usual, st.binary(max_size=50) | st.just(_GOOD)))])


@st.composite
def _multipart(draw: st.DrawFn) -> Body:
    boundary, newline = draw(_BOUNDARIES), draw(_NEWLINES)
    content_type = f"multipart/form-data; boundary={boundary}"
    if draw(st.integers(0, 3)) == 3:
        content_type += f"; charset={draw(_CHARSETS)}"
    line = b"--" + draw(_mostly(st.just(boundary), _BOUNDARIES)).encode("latin-1")
    first = st.tuples(_part(newline, st.just(b"entries")), _part(newline, st.just(b"image"))).map(list)
    parts = draw(_mostly(first, st.just([]))) + draw(st.lists(_part(newline, _NAMES), max_size=3))
    data = draw(_mostly(st.just(b""), st.binary(max_size=20)))
    data += b"".join(line + newline + part + newline for part in parts)
    data += draw(_mostly(st.just(line + b"--" + newline), st.just(b"") | st.just(line) | st.binary(max_size=20)))
    if draw(st.integers(0, 7)) == 7:
        data = data[: draw(st.integers(0, len(data)))]
    return Body(content_type.strip().encode("latin-1"), data, draw(st.booleans()))


_OTHER_TYPES = st.sampled_from([b"application/x-www-form-urlencoded", b"application/json", b"multipart/mixed", b"x"])
_PAIRS = st.sampled_from(
    [b"entries=", _GOOD, b"&", b"=", b"%", b"%ff", b"text=a", b"image=a", b"+", b"\0", b";", b"%u1234"]
)
_OTHER = st.builds(Body, _OTHER_TYPES, st.lists(_PAIRS).map(b"".join) | st.binary(max_size=60), st.booleans())

BODIES = _mostly(_multipart(), _OTHER)
