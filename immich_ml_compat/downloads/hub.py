"""What a hub is to a download: a list of a model's files, and an HTTP stream of each.

The hubs differ in how a list is had and in what their refusals mean; the rest is here.
"""

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import httpx2

from .failures import DownloadError
from .files import RemoteFile
from .sources import Source

# It tells of every request, redirects included, as news.
logging.getLogger("httpx2").setLevel(logging.WARNING)

TIMEOUT = httpx2.Timeout(30, connect=10)
"""For every request: seconds without an answer, and without a connection."""

_WORTH_ANOTHER_TRY = (408, 425, 429, 500, 502, 503, 504)


class Hub(ABC):
    """A hub of models. Safe to use from several threads."""

    title: str
    """The name that people know it by."""

    mirror_variable: str
    """The environment variable that names a mirror of it."""

    endpoint: str
    """Where it, or its mirror, is."""

    @abstractmethod
    def address(self, source: Source) -> str:
        """Return the page of a source's repository, for people."""

    @abstractmethod
    def files(self, source: Source) -> list[RemoteFile]:
        """Return what a source's model consists of. Raises DownloadError."""

    @abstractmethod
    def _client(self) -> AbstractContextManager[httpx2.Client]:
        """Return the client that this hub's requests are made with, for the time of one."""

    def _headers(self) -> Mapping[str, str]:
        return {}

    def reach(self) -> None:
        """Ask for the hub's front page; any answer will do. Raises DownloadError."""
        with self.failures_explained(self.endpoint), self._client() as client:
            client.head(self.endpoint, timeout=TIMEOUT)

    @contextmanager
    def open(self, url: str, offset: int) -> Iterator[httpx2.Response]:
        """Ask for a file from byte `offset` on. Raises DownloadError.

        The answer is 200 (all of it), 206 (the rest) or 416 (there is nothing at that place).
        """
        # Compressed answers would have no length to resume by.
        headers = {**self._headers(), "Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        with (
            self.failures_explained(url),
            self._client() as client,
            client.stream("GET", url, headers=headers, timeout=TIMEOUT, follow_redirects=True) as response,
        ):
            if response.is_error and not (offset and response.status_code == 416):
                raise self.refusal(response)
            yield response

    @contextmanager
    def failures_explained(self, url: str) -> Iterator[None]:
        """Turn the HTTP library's failures into a DownloadError."""
        try:
            yield
        except (httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
            raise DownloadError(
                f"{url} cannot be used ({_one_line(error)})", f"Check {self.mirror_variable}"
            ) from error
        except httpx2.HTTPError as error:
            host = re.sub(r"^(\w+://[^/]+).*", r"\1", url)
            raise DownloadError(
                f"{host} cannot be reached or broke off ({type(error).__name__}: {_one_line(error)})",
                f"Check this server's network, or name a mirror in {self.mirror_variable}",
                transient=True,
            ) from error

    def refusal(self, response: httpx2.Response) -> DownloadError:
        """Say what an error status means."""
        status = response.status_code
        what = f"{self.title} answered {status} {response.reason_phrase} for {response.url}"
        wait = _retry_after(response.headers.get("Retry-After"))
        if status == 429:
            asked = "" if wait is None else f" and asks to wait {wait:g} s"
            return DownloadError(f"{what}{asked}", "Try again later", transient=True, retry_after_s=wait)
        if status in _WORTH_ANOTHER_TRY:
            return DownloadError(what, "Try again later", transient=True, retry_after_s=wait)
        return DownloadError(what, f"Check {self.mirror_variable} if it is set")


def _retry_after(value: str | None) -> float | None:
    # The header may also be a date; no hub here sends one, and the usual waits do then.
    return float(value) if value is not None and re.fullmatch(r"\d+", value) else None


def _one_line(error: Exception) -> str:
    """Return an exception's text on one line."""
    return " ".join(str(error).split()) or type(error).__name__
