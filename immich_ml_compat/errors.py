"""Failures that become an HTTP answer: the status and the `detail` a client reads.

A detail names the thing, the cause and, where there is one, the remedy.
"""

import orjson

from .messages import Answer


class RequestError(Exception):
    """A request that cannot be answered with a result."""

    status = 400

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class InvalidRequestError(RequestError):
    """The request's entries are malformed or name something unknown."""

    status = 422


class InvalidInputError(RequestError):
    """The image or text does not fit the request or cannot be read."""

    status = 400


class ModelInUseError(RequestError):
    """A model cannot be unloaded while requests use it."""

    status = 409


class ModelUnavailableError(RequestError):
    """A known model is not on disk or does not load."""

    status = 500


class ModelMemoryError(ModelUnavailableError):
    """A model did not load for want of memory."""


class OutOfMemoryError(InvalidInputError):
    """An image took more memory than there was."""


class ModelOutputError(RequestError):
    """A model ran and gave an output that must not be sent."""

    status = 500


def failure(status: int, detail: str, *, out_of_memory: bool = False) -> Answer:
    """Build an error's answer, in FastAPI's form."""
    return Answer(status, orjson.dumps({"detail": detail}), out_of_memory)
