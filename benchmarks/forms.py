"""The requests that Immich sends, as the bytes that go over the wire."""

import json

from .models import CLIP, FACES, OCR

ENTRIES: dict[str, dict[str, object]] = {
    "clip": {"clip": {"visual": {"modelName": CLIP}}},
    "faces": {
        "facial-recognition": {
            "detection": {"modelName": FACES, "options": {"minScore": 0.7}},
            "recognition": {"modelName": FACES},
        }
    },
    "ocr": {
        "ocr": {
            "detection": {"modelName": OCR, "options": {"minScore": 0.5, "maxResolution": 736}},
            "recognition": {"modelName": OCR, "options": {"minScore": 0.8}},
        }
    },
    "search": {"clip": {"textual": {"modelName": CLIP, "options": {"language": "zh-CN"}}}},
}
QUERIES = ("a dog running on the beach", "sunset over the mountains", "雪地里奔跑的狗", "birthday cake with candles")

_BOUNDARY = "----formdata-undici-0123456789ab"
CONTENT_TYPE = f"multipart/form-data; boundary={_BOUNDARY}"


def form(task: str, payload: bytes | str) -> bytes:
    """Return the body of a request: the entries of a task, then a photo or a query."""
    start = f"--{_BOUNDARY}\r\nContent-Disposition: form-data; name="
    entries = json.dumps(ENTRIES[task], separators=(",", ":"))
    head = f'{start}"entries"\r\n\r\n{entries}\r\n{start}'
    if isinstance(payload, str):
        content = f'"text"\r\n\r\n{payload}'.encode()
    else:
        content = b'"image"; filename="blob"\r\nContent-Type: application/octet-stream\r\n\r\n' + payload
    return head.encode() + content + f"\r\n--{_BOUNDARY}--\r\n".encode()


def request(task: str, payload: bytes | str) -> bytes:
    """Return a whole HTTP request to `/predict`, on a connection that stays open."""
    body = form(task, payload)
    head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body
