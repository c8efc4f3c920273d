"""Hypothesis and schemathesis against a running server: entries, framing, and what the OpenAPI document promises.

    python -m benchmarks.fuzz.http [--entries 10000] [--framing 10000] [--document 2000] [--images 2000] [--seed 0]

Every answer must be a 200, or a 4xx with a `detail`, and the server must answer `/ping` after. Prints lines for
`docs/reliability.md`. Needs the packages of `make test`.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from immich_ml_compat.messages import Answer

from .forms import BODIES, FORMS, Body, Form
from .images import entries_of, fault_of
from .models import CLIP, write_models
from .mutations import pictures
from .provenance import provenance

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]

Statuses = Counter[int]


def fault_of_response(response: httpx.Response) -> str | None:
    """Say what is wrong with the answer to a form, or None."""
    if response.headers.get("content-type") != "application/json":
        return f"{response.status_code} of type {response.headers.get('content-type')}: {response.content[:200]!r}"
    body = response.json()
    if response.status_code == 200:
        return None if body else "200 with nothing in it"
    if 400 <= response.status_code < 500 and body.get("detail"):
        return None
    return f"{response.status_code} {response.content[:200]!r}"


def try_entries(url: str, examples: int, seed: int = 0) -> Statuses:
    """Send forms as a client builds them, with entries, images and texts of every kind. Raises AssertionError."""

    def send(client: httpx.Client, form: Form) -> httpx.Response:
        return client.post(f"{url}/predict", files=form.fields() or None)

    return _send_all(url, FORMS, send, examples, seed)


def try_framing(url: str, examples: int, seed: int = 0) -> Statuses:
    """Send bodies framed in every way. Raises AssertionError."""

    def send(client: httpx.Client, body: Body) -> httpx.Response:
        content = iter([body.data[:7], body.data[7:]]) if body.chunked else body.data
        return client.post(f"{url}/predict", content=content, headers=[(b"content-type", body.content_type)])

    return _send_all(url, BODIES, send, examples, seed)


def _send_all(
    url: str,
    cases: st.SearchStrategy[Any],
    send: Callable[[httpx.Client, Any], httpx.Response],
    examples: int,
    seed: int,
) -> Statuses:
    statuses: Statuses = Counter()
    with _client() as client:

        @_exploring(examples, seed)
        @given(cases)
        def each(case: Any) -> None:
            response = send(client, case)
            assert (fault := fault_of_response(response)) is None, fault
            statuses[response.status_code] += 1

        each()
        assert client.get(f"{url}/ping").text == "pong"
    return statuses


def try_document(url: str, examples: int, seed: int = 0) -> Statuses:
    """Send what schemathesis makes of the server's OpenAPI document, right and wrong; half of the
    time with one of our forms. Raises schemathesis's FailureGroup for an answer that the document does not declare.
    """
    statuses: Statuses = Counter()
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    for result in schema.get_all_operations():
        assert isinstance(result, Ok), result
        operation = result.ok()
        for mode in GenerationMode:
            if mode is GenerationMode.NEGATIVE and not list(operation.body):
                continue  # nothing can be wrong with a request that takes nothing

            @_exploring(examples if list(operation.body) else 3, seed)
            @given(operation.as_strategy(generation_mode=mode), st.none() | FORMS)
            def each(case: schemathesis.Case[Any], form: Form | None) -> None:
                if form and case.media_type == "multipart/form-data":
                    case.body = {name: value for name, value in vars(form).items() if value is not None}
                response = case.call(timeout=60)
                case.validate_response(response, checks=CHECKS)
                statuses[response.status_code] += 1

            each()
    with _client() as client:
        assert client.get(f"{url}/ping").text == "pong"
    return statuses


def try_images(url: str, count: int, seed: int = 0) -> Statuses:
    """Send mutated images. Raises AssertionError."""
    statuses: Statuses = Counter()
    with _client() as client:
        for number, picture in enumerate(pictures(seed, count)):
            files: list[Any] = [("entries", (None, entries_of(number))), ("image", ("blob", picture.data))]
            response = client.post(f"{url}/predict", files=files)
            fault = fault_of(Answer(response.status_code, response.content))
            assert fault is None, f"{picture.name}: {fault}"
            statuses[response.status_code] += 1
        assert client.get(f"{url}/ping").text == "pong"
    return statuses


def _client() -> httpx.Client:
    # A connection each: one that is kept open may be closed by the server just when the next request is sent.
    return httpx.Client(timeout=120, limits=httpx.Limits(max_keepalive_connections=0))


def _exploring(examples: int, seed: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a property test: so many examples, the same for the same seed."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        options = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        return options(seeded(seed)(test))

    return decorate


@contextmanager
def fuzzed_server(folder: Path) -> Iterator[str]:
    """Run a server with tiny models and give its address. Raises AssertionError for a traceback in its log."""
    from tests.clip_models import write_clip_model
    from tests.server import running_server

    write_models(folder / "cache")
    write_clip_model(folder / "cache", CLIP)
    settings = {"HF_HUB_OFFLINE": "1", "MACHINE_LEARNING_UI": "true"}  # with all there is
    with running_server(folder / "cache", folder, settings) as server:
        yield server.url
        log = server.log.read_text()
    assert "Traceback" not in log, log


def main() -> int:
    """Try everything in turn, and print what was answered."""
    parser = argparse.ArgumentParser()
    kinds = {"entries": try_entries, "framing": try_framing, "document": try_document, "images": try_images}
    for kind, examples in zip(kinds, (10_000, 10_000, 2_000, 2_000), strict=True):
        parser.add_argument(f"--{kind}", type=int, default=examples)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    where = provenance()
    names = {"entries": "entries and options (hypothesis)", "framing": "multipart framing (hypothesis)"}
    names |= {"document": "the OpenAPI document (schemathesis)", "images": "mutated images over HTTP"}
    with tempfile.TemporaryDirectory() as folder, fuzzed_server(Path(folder)) as url:
        for kind, attempt in kinds.items():
            start = time.perf_counter()
            statuses = attempt(url, getattr(options, kind), options.seed)
            answers = ", ".join(f"{count} × {status}" for status, count in sorted(statuses.items()))
            seconds = time.perf_counter() - start
            total = statuses.total()
            print(f"| {names[kind]} | {total} | 0 failures; {answers}; {seconds:.0f} s | {where} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
