"""Log lines, as text or JSON, each with the id of the request that it belongs to."""

import json
import logging
import sys
from datetime import UTC, datetime

from .settings import LogFormat
from .trace import request_id


def set_up_logging(level: int, form: LogFormat = "text") -> None:
    """Log to standard error, every process in the same form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level, handlers=[handler])


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
