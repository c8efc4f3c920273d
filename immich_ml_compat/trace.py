"""Which request is being worked on: its id, for the logs of the front and the workers, and its task, for metrics."""

from contextvars import ContextVar
from dataclasses import dataclass

UNKNOWN_TASK = "unknown"
"""The task of a request that was refused before anybody knew what it asks for."""


@dataclass
class Trace:
    """One request on its way."""

    id: str
    task: str = UNKNOWN_TASK


TRACE: ContextVar[Trace | None] = ContextVar("trace", default=None)
"""The request that the running code works for."""


def request_id() -> str:
    """Return the id of the request that the running code works for; empty where there is none."""
    trace = TRACE.get()
    return "" if trace is None else trace.id
