"""Log lines, as text or JSON, each with the id of the request that it belongs to."""

import json
import logging
import sys
import time
from datetime import UTC, datetime

from .settings import LogFormat
from .trace import request_id

_OF_STRANGERS = ("asyncio", "python_multipart.multipart", "uvicorn.error")
"""Loggers of libraries in which every connection of a stranger's can have a line, some with a traceback."""


def set_up_logging(level: int, form: LogFormat = "text") -> None:
    """Log to standard error, every process in the same form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level, handlers=[handler])
    for name in _OF_STRANGERS:
        logging.getLogger(name).addFilter(Sparing())


class TextLines(logging.Formatter):
    """A line for a person: time, level, the request's id in brackets where there is one, message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-8s %(request)s%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        identity = request_id()
        record.request = f"[{identity}] " if identity else ""
        return super().format(record)


class JsonLines(logging.Formatter):
    """A JSON object on a line: time, level, logger, process, message, and where there are, request_id and exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        if identity := request_id():
            line["request_id"] = identity
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)  # in ASCII, which no locale and no lone surrogate can break


class Sparing(logging.Filter):
    """Lets so many lines of a kind through in a minute. Out of file descriptors, asyncio logs thousands in a second."""

    MOST, SPAN_S = 10, 60.0

    def __init__(self) -> None:
        super().__init__()
        self._kinds: dict[object, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a line is to be logged; the last one in its minute says that it is."""
        error = record.exc_info[0] if record.exc_info else None
        kind, now = (record.module, record.lineno, error), time.monotonic()  # not the text: a stranger may choose it
        since, count = self._kinds.get(kind, (now, 0))
        if now - since >= self.SPAN_S:
            since, count = now, 0
        self._kinds[kind] = since, count + 1
        if count + 1 == self.MOST:
            record.msg = f"{record.msg} (more of these are left out for a minute)"
        return count < self.MOST
