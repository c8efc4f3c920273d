"""What the server says of what it does: metrics, the dashboard over them, health, and the ids of requests in logs."""

import json
import logging
import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import psutil
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from immich_ml_compat.logs import JsonLines, TextLines
from immich_ml_compat.metrics import Metrics
from immich_ml_compat.status import ServerStatus, WorkerStatus
from immich_ml_compat.timing import INFERENCE, QUEUE, Stopwatch, during, recording, stopwatch, timed
from immich_ml_compat.trace import TRACE, Trace

from .model_folders import CLIP, OCR
from .server import Server, running_server
from .test_link import statuses as worker_statuses
from .test_workers import PHOTO, READ, TEXT, eventually, workers

ROOT = Path(__file__).parents[1]
DASHBOARD = json.loads((ROOT / "deploy/grafana/immich-ml-compat.json").read_text(encoding="utf-8"))
SCRAPE = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))

TOKEN = "0ur-t0ken-0f-the-tests"
QUERY = "a walk that nobody shall know of"
MISSING = {"clip": {"visual": {"modelName": "ViT-L-14__openai"}}}
GOOD_ID = "immich-Job_1.7"
SUBSTITUTION = {"PP-OCRv5_server": OCR}

Samples = dict[str, dict[frozenset[tuple[str, str]], float]]


class Watched:
    """A server whose token we have."""

    def __init__(self, server: Server) -> None:
        self.server = Server(f"{server.url}/{TOKEN}", server.process, server.log)
        self.bare = server.url

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.server.url}{path}", timeout=60)

    def samples(self) -> Samples:
        return parsed(self.get("/metrics").text)

    def value(self, name: str, **labels: str) -> float:
        return self.samples().get(name, {}).get(frozenset(labels.items()), 0.0)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.server.log.read_text().splitlines()]


def parsed(text: str) -> Samples:
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        samples.setdefault(family.name, {})
        for sample in family.samples:
            series = samples.setdefault(sample.name, {})
            labels = frozenset(sample.labels.items())
            assert labels not in series, f"{sample.name} {dict(labels)} twice"
            series[labels] = sample.value
    return samples


@pytest.fixture(scope="module")
def watched(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A server that has answered a photo, a search, and three requests at fault."""
    settings = {
        "MACHINE_LEARNING_LOG_FORMAT": "json",
        "IMMICH_LOG_LEVEL": "debug",
        "MACHINE_LEARNING_ACCESS_TOKEN": TOKEN,
        "MACHINE_LEARNING_MODEL_ALIASES": json.dumps(SUBSTITUTION),
    }
    with running_server(cache, tmp_path_factory.mktemp("watched"), settings, root=f"/{TOKEN}") as server:
        watched = Watched(server)
        assert watched.server.predict(READ, PHOTO).status_code == 200
        assert watched.server.predict(TEXT, text=QUERY).status_code == 200
        assert watched.server.predict(READ, b"no picture").status_code == 400
        assert watched.server.predict("nonsense", text=QUERY).status_code == 422
        assert watched.server.predict(MISSING, PHOTO).status_code == 500
        eventually(lambda: watched.value("immich_ml_downloads_total", result="failed"))
        yield watched


# ---------------------------------------------------------------- metrics


def test_requests_are_counted_by_task_and_status(watched: Watched) -> None:
    for task, status in (("ocr", 200), ("clip", 200), ("ocr", 400), ("unknown", 422), ("clip", 500)):
        assert watched.value("immich_ml_requests_total", task=task, status=str(status)) >= 1, (task, status)
    before = watched.samples()["immich_ml_request_duration_seconds_count"]
    assert watched.server.predict(TEXT, text=QUERY).status_code == 200
    after = watched.samples()["immich_ml_request_duration_seconds_count"]
    assert {dict(labels)["task"]: count - before[labels] for labels, count in after.items()} == {
        "ocr": 0,
        "clip": 1,
        "unknown": 0,
    }


def test_the_stages_of_a_request_are_within_its_time(watched: Watched) -> None:
    samples = watched.samples()
    stages = samples["immich_ml_stage_duration_seconds_sum"]
    took = {dict(labels)["stage"]: seconds for labels, seconds in stages.items() if dict(labels)["task"] == "ocr"}
    assert set(took) == {"decode", "load", "preprocess", "queue", "inference", "postprocess"}
    assert min(took["decode"], took["load"], took["preprocess"], took["inference"]) > 0
    whole = samples["immich_ml_request_duration_seconds_sum"][frozenset({("task", "ocr")})]
    assert sum(took.values()) <= whole


def test_memory_is_what_the_system_says(watched: Watched) -> None:
    front = psutil.Process(watched.server.process.pid)
    (worker,) = workers(watched.server)
    said = {dict(labels)["process"]: value for labels, value in watched.samples()["immich_ml_memory_bytes"].items()}
    assert said == {
        "front": pytest.approx(front.memory_info().rss, rel=0.2),
        "worker": pytest.approx(worker.memory_info().rss, rel=0.2),
    }


def test_uploads_are_counted_until_they_are_answered(watched: Watched) -> None:
    """A body of which only a part has come has its place, and is not in the queue yet."""
    assert watched.value("immich_ml_upload_bytes") == 0
    port = int(watched.bare.rpartition(":")[2])
    head = f"POST /{TOKEN}/predict HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=B\r\n"
    begun = f"{head}Content-Length: 40000000\r\n\r\n--B".encode()
    with ExitStack() as stack:

        def upload(count: int) -> None:
            for _ in range(count):
                stack.enter_context(socket.create_connection(("127.0.0.1", port))).sendall(begun)

        upload(1)
        eventually(lambda: watched.value("immich_ml_upload_bytes") == 40_000_000)
        assert watched.value("immich_ml_uploads_waiting") == watched.value("immich_ml_queue_bytes") == 0
        upload(12)
        eventually(lambda: watched.value("immich_ml_uploads_waiting") == 1)
        assert watched.value("immich_ml_upload_bytes") == 480_000_000
    eventually(lambda: watched.value("immich_ml_upload_bytes") == 0)


def test_the_models_in_memory_are_told(watched: Watched) -> None:
    models = [dict(labels) for labels in watched.samples()["immich_ml_model_info"]]
    assert {(model["task"], model["type"], model["name"]) for model in models} == {
        ("ocr", "detection", OCR),
        ("ocr", "recognition", OCR),
        ("clip", "textual", CLIP),
    }
    for model in models:
        assert (model["provider"], model["precision"], model["device_id"]) == ("CPUExecutionProvider", "fp32", "0")
        assert model["engine"] == "ONNX Runtime on cpu in fp32"


def test_runs_of_graphs_are_counted(watched: Watched) -> None:
    before = watched.value("immich_ml_graph_batch_size_count")
    assert before >= 3, "two OCR graphs and a text tower"
    assert watched.server.predict(TEXT, text=QUERY).status_code == 200
    eventually(lambda: watched.value("immich_ml_graph_batch_size_count") == before + 1)


def test_names_follow_the_conventions(watched: Watched) -> None:
    for family in text_string_to_metric_families(watched.get("/metrics").text):
        assert re.fullmatch("immich_ml(_[a-z]+)+", family.name), family.name
        assert not re.search("_(ms|milliseconds|minutes|kb|mb|percent)(_|$)", family.name), family.name
        assert (family.type == "counter") == all(sample.name.endswith("_total") for sample in family.samples) or (
            not family.samples
        ), family.name


@given(workers=st.lists(worker_statuses, max_size=3, unique_by=lambda status: status.pid), starts=st.integers(0, 9))
def test_whatever_workers_tell_is_valid_text(workers: list[WorkerStatus], starts: int) -> None:
    """Several workers may hold the same models, with names that nobody chose well."""
    status = ServerStatus(1, 2, 3, 4, tuple(workers), starts, 5, (), None, 6.0)
    samples = parsed(Metrics(CollectorRegistry(), lambda: status).text().decode())
    assert samples["immich_ml_workers"] == {frozenset(): len(workers)}
    told = {dict(labels)["name"] for labels in samples["immich_ml_model_info"]}
    assert told == {model.name for worker in workers for model in worker.models}


# ---------------------------------------------------------------- what is in deploy/


def expressions() -> list[str]:
    variables = [each["definition"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
    return variables + [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def test_the_dashboard_shows_what_there_is(watched: Watched) -> None:
    samples = watched.samples()
    labels = {name for series in samples.values() for each in series for name, _ in each}
    labels |= {"job", "instance", "device_id"}  # Prometheus's own; of VRAM, which only a GPU has
    named = {name for expression in expressions() for name in re.findall(r"immich_ml_\w+", expression)}
    assert named <= set(samples)
    assert len(expressions()) > 20
    for expression in expressions():
        for listed in re.findall(r"by \(([^)]*)\)", expression):
            assert set(listed.split(", ")) <= labels, expression
        for open_, close in ("()", "{}", "[]"):
            assert expression.count(open_) == expression.count(close), expression
    made = {name for name in samples if not name.endswith(("_created", "_bucket", "_sum", "_count"))}
    bases = {re.sub("_(bucket|sum|count|total)$", "", name) for name in named}
    assert {re.sub("_total$", "", name) for name in made} <= bases, "all that is told is shown"


def test_the_panels_lie_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_prometheus_finds_the_metrics(watched: Watched) -> None:
    (job,) = SCRAPE["scrape_configs"]
    assert set(job) == {"job_name", "metrics_path", "static_configs"}
    url = f"{watched.bare}{job['metrics_path']}"
    # As it asks with the `authorization` that is commented out there.
    answer = httpx.get(url, headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert httpx.get(url).status_code == 404
    assert httpx.get(f"{watched.bare}/health").status_code == 404


# ---------------------------------------------------------------- health


def test_health_tells_each_models_readiness(watched: Watched) -> None:
    answer = watched.get("/health")
    document = answer.json()
    assert (answer.status_code, document["ready"], document["trouble"]) == (200, True, None)
    models = {(model["task"], model["type"], model["name"]): model for model in document["models"]}
    assert models["ocr", "recognition", OCR]["state"] == "loaded"
    assert models["ocr", "recognition", OCR]["last_run"] is not None
    assert models["facial-recognition", "detection", "buffalo_s"]["state"] == "on disk"
    lacking = models["clip", "visual", "ViT-L-14__openai"]
    assert (lacking["state"], lacking["last_run"]) == ("to be downloaded", None)
    assert "could not be downloaded" in lacking["last_failure"]["detail"]
    assert document["engine"] == {
        "engine": "onnxruntime",
        "device": "cpu",
        "precision": "fp32",
        "reason": document["engine"]["reason"],
    }
    ((alias, name),) = SUBSTITUTION.items()
    assert any(alias in told and name in told for told in document["substitutions"])
    assert document["self_test"]["at"] == max(
        end for model in models.values() for end in (model["last_run"], (model["last_failure"] or {}).get("at")) if end
    )


def valid(answer: httpx.Response, server: str) -> Any:
    """Return the document, held against what the server's own OpenAPI document says of it."""
    declared = httpx.get(f"{server}/openapi.json").json()["paths"]["/health"]["get"]["responses"]
    schema = declared[str(answer.status_code)]["content"]["application/json"]["schema"]
    jsonschema_rs.Draft202012Validator(schema).validate(answer.json())
    return answer.json()


def test_health_is_as_declared(watched: Watched) -> None:
    valid(watched.get("/health"), watched.server.url)


def test_health_tells_why_no_worker_can_start(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'immich_ml_compat.worker' in sys.orig_argv: os._exit(7)\n"
    )
    settings = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    with running_server(cache / "nothing", tmp_path, settings) as server:
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert server.predict(TEXT, text="sea").status_code == 503
        answer = httpx.get(f"{server.url}/health")
        document = valid(answer, server.url)
        assert (answer.status_code, document["ready"]) == (503, False)
        assert "exit code 7" in document["trouble"]
        states = {(model["name"], model["type"]): model["state"] for model in document["models"]}
        assert states[OCR, "detection"] == "bundled"
        assert states[CLIP, "textual"] == "to be downloaded"
        samples = parsed(httpx.get(f"{server.url}/metrics").text)
        assert samples["immich_ml_ready"] == {frozenset(): 0.0}


def test_a_worker_that_dies_is_counted_and_its_models_are_remembered(watched: Watched) -> None:
    def last_run() -> str | None:
        models = watched.get("/health").json()["models"]
        (found,) = [model for model in models if (model["type"], model["name"]) == ("detection", OCR)]
        run: str | None = found["last_run"]
        return run

    before, ran = watched.value("immich_ml_worker_restarts_total"), last_run()
    os.kill(workers(watched.server)[0].pid, signal.SIGKILL)
    eventually(lambda: watched.value("immich_ml_worker_restarts_total") == before + 1)
    assert watched.server.predict(TEXT, text=QUERY).status_code == 200
    eventually(lambda: watched.value("immich_ml_workers") == 1)
    assert ran is not None
    assert last_run() == ran


# ---------------------------------------------------------------- logs


def test_the_id_of_a_request_is_in_the_lines_of_both_processes(watched: Watched) -> None:
    response = httpx.post(
        f"{watched.server.url}/predict",
        files={"entries": (None, json.dumps(MISSING)), "image": ("blob", PHOTO, "application/octet-stream")},
        headers={"X-Request-ID": GOOD_ID},
        timeout=60,
    )
    assert response.headers["x-request-id"] == GOOD_ID
    eventually(lambda: len({line["process"] for line in watched.lines() if line.get("request_id") == GOOD_ID}) == 2)
    lines = [line for line in watched.lines() if line.get("request_id") == GOOD_ID]
    assert any("ViT-L-14__openai" in line["message"] for line in lines)


def test_lines_of_no_request_have_no_id(watched: Watched) -> None:
    lines = [line for line in watched.lines() if "inference worker" in line["message"].lower()]
    assert lines
    assert not any("request_id" in line for line in lines)


@pytest.mark.parametrize("given_id", ["", "a" * 65, "two words", "{}", 'quo"te', "semi;colon", "naïve"])
def test_an_id_that_could_forge_lines_is_replaced(watched: Watched, given_id: str) -> None:
    headers = [(b"X-Request-ID", given_id.encode())]
    answers = [httpx.get(f"{watched.server.url}/ping", headers=headers).headers["x-request-id"] for _ in range(2)]
    assert all(re.fullmatch("[0-9a-f]{16}", answer) for answer in answers)
    assert answers[0] != answers[1]


def test_neither_queries_nor_the_token_are_logged(watched: Watched) -> None:
    log = watched.server.log.read_text()
    assert QUERY not in log
    assert TOKEN not in log
    assert "no picture" not in log


def test_a_stranger_gets_no_id(watched: Watched) -> None:
    assert "x-request-id" not in httpx.get(f"{watched.bare}/ping").headers


@given(message=st.text(), identity=st.from_regex("[A-Za-z0-9._-]{1,64}", fullmatch=True) | st.none())
def test_every_json_line_is_one_line_that_reads_back(message: str, identity: str | None) -> None:
    record = logging.LogRecord("name", logging.WARNING, "", 0, "%s", (message,), None)
    token = TRACE.set(None if identity is None else Trace(identity))
    try:
        line = JsonLines().format(record)
        text = TextLines().format(record)
    finally:
        TRACE.reset(token)
    assert "\n" not in line
    read = json.loads(line)
    assert (read["message"], read["level"], read.get("request_id")) == (message, "warning", identity)
    assert text.endswith(f"[{identity}] {message}" if identity else f" WARNING  {message}")


# ---------------------------------------------------------------- stages


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 100), st.none() | st.integers(-50, 300)),
        max_size=20,
    )
)
def test_stages_add_up_to_the_time_that_passed(steps: list[tuple[str, int, int | None]]) -> None:
    now = 100.0
    watch = Stopwatch(lambda: now)
    for stage, passed, at in steps:
        now += passed
        watch.switch(stage, at)
    now += 1
    watch.switch("end")
    assert sum(watch.seconds.values()) == pytest.approx(now - 100)
    assert all(seconds >= 0 for seconds in watch.seconds.values())


def test_a_task_has_its_own_stages() -> None:
    with recording() as stages:
        with timed("ocr"), during(INFERENCE):
            pass
        with timed("clip"):
            stopwatch().switch(QUEUE)
    assert stages.keys() == {"ocr", "clip"}
    assert INFERENCE in stages["ocr"]
    assert QUEUE in stages["clip"]
    assert QUEUE not in stages["ocr"]
    stopwatch().switch(QUEUE)  # outside of any task it is nobody's
