"""ModelScope, over plain HTTP."""

import os
import re
from contextlib import AbstractContextManager
from urllib.parse import quote

import httpx2

from .failures import DownloadError
from .files import RemoteFile
from .hub import Hub
from .sources import Source, modelscope_endpoint


class ModelScope(Hub):
    """The hub at MODELSCOPE_DOMAIN, which is what ModelScope's own tools call it."""

    title = "ModelScope"
    mirror_variable = "MODELSCOPE_DOMAIN"

    def __init__(self, endpoint: str | None = None) -> None:
        """`endpoint` is that of the environment unless given; a host without `https://` will do."""
        endpoint = endpoint or os.environ.get("MODELSCOPE_DOMAIN") or modelscope_endpoint()
        self.endpoint = (endpoint if re.match(r"\w+://", endpoint) else f"https://{endpoint}").rstrip("/")

    def address(self, source: Source) -> str:
        """Return the page of a source's repository, for people."""
        return f"{self.endpoint}/models/{source.repository}"

    def files(self, source: Source) -> list[RemoteFile]:
        """Return what a source's model consists of; `sources.toml` says it all. Raises DownloadError."""
        if not source.files:
            raise DownloadError(f"the files of {self.address(source)} are not known", "Report this to the project")
        base = f"{self.address(source)}/resolve/{source.revision}"
        sums = source.sha256 or {}
        return [RemoteFile(path, f"{base}/{quote(name)}", sha256=sums.get(name)) for path, name in source.files.items()]

    def refusal(self, response: httpx2.Response) -> DownloadError:
        """Say what an error status means."""
        if response.status_code == 404:
            return DownloadError(f"{response.url} does not exist (404)", "Check MODELSCOPE_DOMAIN if it is set")
        return super().refusal(response)

    def _client(self) -> AbstractContextManager[httpx2.Client]:
        return httpx2.Client()
