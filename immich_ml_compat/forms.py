"""The forms that requests come in: multipart or url-encoded, read into memory within limits."""

import codecs
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import FormParser, MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from .body import BodyLimits, receive_body
from .room import Place

# For the names of hosts. Python's decoders take a time that grows with the square: 70 s for a field of 1 MB.
_SLOW_CHARSETS = {"punycode", "idna"}


class _InMemoryParser(MultiPartParser):
    spool_max_size = 2**63 - 1  # an upload is held in memory, never in a temporary file


@asynccontextmanager
async def form_of(request: Request, limits: BodyLimits, place: Place) -> AsyncIterator[FormData]:
    """Receive the form of a request; without one it is empty. Raises what FastAPI answers with 400, and BodyError."""
    form = await _receive(request, limits, place)
    try:
        yield form
    finally:
        await form.close()


async def read_file(value: UploadFile | str | None) -> bytes | None:
    """Return the content of a form's part, whether it was sent as a file or not; None where it was not sent."""
    if value is None:
        return None
    return value.encode() if isinstance(value, str) else await value.read()


def invalid(kind: str, *place: str, message: str) -> RequestValidationError:
    """Return the error for a part of a request, such as ("body", "text"), that FastAPI itself would raise."""
    return RequestValidationError([{"type": kind, "loc": place, "msg": message, "input": None}])


def missing(*place: str) -> RequestValidationError:
    """Return the same for a part that is not there."""
    return invalid("missing", *place, message="Field required")


async def _receive(request: Request, limits: BodyLimits, place: Place) -> FormData:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    form, body = FormData(), receive_body(request, limits, place)
    try:
        if content_type == "multipart/form-data":
            _check_charset(request)
            form = await _InMemoryParser(request.headers, body).parse()
        elif content_type == "application/x-www-form-urlencoded":
            form = await FormParser(request.headers, body).parse()
        for value in form.values():
            if isinstance(value, str):
                value.encode()  # a charset such as unicode_escape gives lone surrogates, which nothing later takes
    except MultiPartException as error:
        raise HTTPException(400, error.message) from None
    except UnicodeError:
        await form.close()
        raise HTTPException(400, "The form is not in the charset it states") from None
    except ClientDisconnect:
        raise HTTPException(400, "The client went away") from None  # so nobody reads this
    return form


def _check_charset(request: Request) -> None:
    _, options = parse_options_header(request.headers["content-type"])
    with suppress(LookupError, ValueError):  # what is no charset is read as Latin-1
        if codecs.lookup(options.get(b"charset", b"utf-8").decode("latin-1")).name in _SLOW_CHARSETS:
            raise HTTPException(400, "The form is in a charset for the names of hosts; send UTF-8")
