"""What Prometheus reads: counted in the front process, and gauges from the server's status at the moment it asks.

Names and units: https://prometheus.io/docs/practices/naming/
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from . import __version__
from .link import Alive, Done
from .status import ModelStatus, ServerStatus, WorkerStatus

CONTENT_TYPE = CONTENT_TYPE_LATEST

_PREFIX = "immich_ml_"

# A search takes 5 ms, a page of text on two slow cores 5 s, and Immich waits for 300 s.
_REQUEST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_STAGE_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120)
_ITEMS = (1, 2, 4, 8, 16, 32)


class Metrics:
    """The metrics of a server. Lives in the event loop of the front process."""

    def __init__(self, registry: CollectorRegistry, status: Callable[[], ServerStatus]) -> None:
        """Register the metrics; `status` is asked for the gauges."""
        self._registry = registry
        self._requests = Counter(
            f"{_PREFIX}requests",
            "Answers to POST /predict, by task and HTTP status.",
            ["task", "status"],
            registry=registry,
        )
        self._durations = Histogram(
            f"{_PREFIX}request_duration_seconds",
            "From the head of a POST /predict to the end of its answer.",
            ["task"],
            buckets=_REQUEST_S,
            registry=registry,
        )
        self._waits = Histogram(
            f"{_PREFIX}queue_wait_seconds",
            "From a request's arrival in the queue until a worker takes it.",
            ["kind"],
            buckets=_REQUEST_S,
            registry=registry,
        )
        self._stages = Histogram(
            f"{_PREFIX}stage_duration_seconds",
            "What a request spent in each stage of a task, in the worker.",
            ["task", "stage"],
            buckets=_STAGE_S,
            registry=registry,
        )
        self._batches = Histogram(
            f"{_PREFIX}graph_batch_size", "Items that a run of a graph had.", buckets=_ITEMS, registry=registry
        )
        self._downloads = Counter(
            f"{_PREFIX}downloads", "Models downloaded, and downloads that failed.", ["result"], registry=registry
        )
        for result in ("done", "failed"):
            self._downloads.labels(result)
        registry.register(_StatusCollector(status))

    def finished(self, task: str, status: int, seconds: float) -> None:
        """Count a `POST /predict` that is over."""
        self._requests.labels(task, status).inc()
        self._durations.labels(task).observe(seconds)

    def waited(self, kind: str, seconds: float) -> None:
        """Count a request that a worker has taken from the queue; `kind` is photo or search."""
        self._waits.labels(kind).observe(seconds)

    def heard(self, message: Done | Alive) -> None:
        """Count what a worker tells."""
        if isinstance(message, Done):
            for task, stages in message.answer.stages.items():
                for stage, seconds in stages.items():
                    self._stages.labels(task, stage).observe(seconds)
            return
        for items, runs in message.events.batches:
            for _ in range(runs):
                self._batches.observe(items)
        self._downloads.labels("done").inc(message.events.downloads)
        self._downloads.labels("failed").inc(message.events.failed_downloads)

    def text(self) -> bytes:
        """Return all of them in Prometheus's text format."""
        return generate_latest(self._registry)


class _StatusCollector(Collector):
    """What the server's status says, as metrics."""

    def __init__(self, status: Callable[[], ServerStatus]) -> None:
        self._status = status

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the registry need not ask for the status to know the names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of this moment."""
        status = self._status()
        yield _gauges("build_info", "The server's version.", ["version"], [([__version__], 1)])
        yield _gauge("start_time_seconds", "When the server was started, in seconds since 1970.", status.started_at)
        yield _gauge(
            "ready",
            "1 while requests can be answered, 0 while no worker can be started or all die.",
            not status.trouble,
        )
        queue = [(["photo"], status.queue_photos), (["search"], status.queue_searches)]
        yield _gauges("queue_requests", "Requests that wait for a worker.", ["kind"], queue)
        yield _gauge("queue_bytes", "What the waiting requests take.", status.queue_bytes)
        yield _gauge("uploads_waiting", "Uploads that are held back, unread, for want of room.", status.uploads_waiting)
        yield _gauge("upload_bytes", "What the bodies of requests take until they are answered.", status.upload_bytes)
        yield _gauge("requests_in_progress", "Requests that workers have in hand.", status.in_hand)
        yield _gauge("workers", "Inference workers that run.", len(status.workers))
        yield _counter("worker_starts", "Inference workers that were started.", status.starts)
        yield _counter("worker_restarts", "Inference workers that died, or were killed for hanging.", status.restarts)
        yield _gauges("memory_bytes", "Resident memory.", ["process", "host", "pid"], _memory(status))
        loading = max((worker.loading_s for worker in status.workers), default=0.0)
        yield _gauge("model_loading_seconds", "How long the slowest load that is running has been at it.", loading)
        yield from _models(status.workers)
        workers = [worker for worker in status.workers if worker.vram_bytes is not None]
        vram = {str(worker.device_id): worker.vram_bytes or 0 for worker in workers}
        about = "GPU memory in use, by whichever processes."
        yield _gauges("vram_used_bytes", about, ["device_id"], (([device], used) for device, used in vram.items()))


def _models(workers: Iterable[WorkerStatus]) -> Iterator[Metric]:
    held = [(worker, model) for worker in workers for model in worker.models]
    names = ("task", "type", "name", "provider", "engine", "precision", "device_id")
    info = {
        (*_key(model), model.provider, worker.engine.partition(":")[0], worker.precision, str(worker.device_id)): 1
        for worker, model in held
    }
    yield _gauges("model_info", "The models in memory.", names, info.items())
    sizes = {_key(model): model.bytes for _, model in held}
    yield _gauges("model_file_bytes", "The size of the files of a model in memory.", names[:3], sizes.items())
    runs: dict[tuple[str, ...], float] = {}
    for _, model in held:
        if model.last_run is not None:
            runs[_key(model)] = max(model.last_run, runs.get(_key(model), 0.0))
    about = "When a model in memory last ran without an error, in seconds since 1970."
    yield _gauges("model_last_run_timestamp_seconds", about, names[:3], runs.items())


def _key(model: ModelStatus) -> tuple[str, str, str]:
    return model.task, model.type, model.name


def _memory(status: ServerStatus) -> Iterator[tuple[tuple[str, str, str], float]]:
    yield ("front", "", ""), status.memory_bytes
    for worker in status.workers:
        yield ("worker", worker.host, str(worker.pid)), worker.memory_bytes


def _gauge(name: str, about: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(_PREFIX + name, about, value=value)


def _gauges(
    name: str, about: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], float]]
) -> GaugeMetricFamily:
    """Make a gauge of a value for each set of labels' values."""
    family = GaugeMetricFamily(_PREFIX + name, about, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


def _counter(name: str, about: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(_PREFIX + name, about, value=value)
