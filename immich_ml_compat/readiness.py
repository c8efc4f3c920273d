"""What `/health` tells: whether the server can answer, each model's readiness, and what answers for what."""

import time
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from . import __version__
from .catalog import TYPES, ModelType, Task
from .engine_choice import Choice
from .status import ModelFailure, ServerStatus, WorkerStatus
from .store import ModelKey, ModelStore


class Readiness:
    """Remembers how models fared in workers that may have ended. Lives in the event loop of the front process."""

    def __init__(self, store: ModelStore, choice: Choice, preloaded: Iterable[ModelKey]) -> None:
        """`preloaded` are the models that are to be in memory all the time."""
        self._store = store
        self._choice = choice
        self._preloaded = frozenset(preloaded)
        self._asked = set(self._preloaded)
        self._last_runs: dict[ModelKey, float] = {}
        self._failures: dict[ModelKey, ModelFailure] = {}

    def asked(self, keys: Iterable[ModelKey]) -> None:
        """Note which models requests are for."""
        self._asked.update(keys)

    def heard(self, status: WorkerStatus) -> None:
        """Note what a worker tells of its models."""
        for model in status.models:
            if model.last_run is not None:
                key = _key(model.task, model.name, model.type)
                self._last_runs[key] = max(model.last_run, self._last_runs.get(key, 0.0))
        for failure in status.failures:
            key = _key(failure.task, failure.name, failure.type)
            known = self._failures.get(key)
            if known is None or known.at < failure.at:
                self._failures[key] = failure

    def snapshot(self) -> "Readiness":
        """Return one that no longer hears anything, for another thread."""
        other = Readiness(self._store, self._choice, self._preloaded)
        other._asked |= self._asked
        other._last_runs |= self._last_runs
        other._failures |= self._failures
        return other

    def document(self, status: ServerStatus) -> dict[str, Any]:
        """Return it all, for JSON. Looks at the disk."""
        loaded = {_key(model.task, model.name, model.type) for worker in status.workers for model in worker.models}
        here = {ModelKey(task, name, kind) for task, name in self._store.models() for kind in TYPES[task]}
        keys = sorted(
            loaded | self._asked | set(self._failures) | {key for key in here if self._store.find(key)}, key=str
        )
        return {
            "ready": status.trouble is None,
            "trouble": status.trouble,
            "version": __version__,
            "uptime_s": round(max(0.0, time.time() - status.started_at), 3),
            "engine": asdict(self._choice),
            "substitutions": list(status.substitutions),
            "self_test": self._self_test(),
            "models": [self._model(key, key in loaded) for key in keys],
            "workers": {"running": len(status.workers), "starts": status.starts, "restarts": status.restarts},
            "queue": {
                "photos": status.queue_photos,
                "searches": status.queue_searches,
                "bytes": status.queue_bytes,
                "in_hand": status.in_hand,
            },
        }

    def _model(self, key: ModelKey, loaded: bool) -> dict[str, Any]:
        failure = self._failures.get(key)
        return {
            "task": key.task,
            "type": key.type,
            "name": key.name,
            "state": "loaded" if loaded else self._whereabouts(key),
            "preloaded": key in self._preloaded,
            "last_run": _time_of_day(self._last_runs.get(key)),
            "last_failure": None if failure is None else {"at": _time_of_day(failure.at), "detail": failure.detail},
        }

    def _whereabouts(self, key: ModelKey) -> str:
        files = self._store.find(key)
        if files is None:
            return "to be downloaded"
        return "on disk" if files.graph.is_relative_to(self._store.folder) else "bundled"

    def _self_test(self) -> dict[str, Any] | None:
        """The newest of all runs and failures: every load is followed by a run, of a request's or of warming up."""
        ends = [(at, True, key) for key, at in self._last_runs.items()]
        ends += [(failure.at, False, key) for key, failure in self._failures.items()]
        if not ends:
            return None
        at, passed, key = max(ends, key=lambda end: end[0])
        return {"at": _time_of_day(at), "passed": passed, "model": str(key)}


def _key(task: str, name: str, kind: str) -> ModelKey:
    return ModelKey(Task(task), name, ModelType(kind))


def _time_of_day(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
