"""ModelScope, over plain HTTP."""

import os
import re
from contextlib import AbstractContextManager
from urllib.parse import quote

import httpx2
from pydantic import BaseModel, Field, ValidationError

from .failures import DownloadError
from .files import RemoteFile
from .hub import TIMEOUT, Hub
from .sources import Source, modelscope_endpoint

_LONGEST_LISTING = 4 << 20
_SUCCESS = 200


class _Entry(BaseModel):
    path: str = Field(alias="Path")
    size: int | None = Field(default=None, alias="Size", ge=0)
    sha256: str | None = Field(default=None, alias="Sha256")


class _Files(BaseModel):
    files: list[_Entry] = Field(alias="Files")


class _Listing(BaseModel):
    """What the hub answers; it may say of a failure in `Code` alone, under the status 200."""

    code: int = Field(alias="Code", default=_SUCCESS)
    data: _Files = Field(alias="Data")


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
        """Return what a source's model consists of. Raises DownloadError.

        Where `sources.toml` has the sum of every file, the hub is not asked.
        """
        if not source.files:
            raise DownloadError(f"the files of {self.address(source)} are not known", "Report this to the project")
        known = source.sha256 or {}
        listed = {} if set(source.files.values()) <= known.keys() else self._listing(source)
        base = f"{self.address(source)}/resolve/{source.revision}"
        found = []
        for path, name in source.files.items():
            entry = listed.get(name)
            if entry is None and name not in known:
                raise DownloadError(f"{self.address(source)} has no {name}", "Report this to the project")
            sha256 = known.get(name) or (entry.sha256.lower() if entry and entry.sha256 else None)
            try:
                found.append(RemoteFile(path, f"{base}/{quote(name)}", entry.size if entry else None, sha256))
            except ValueError as error:
                raise DownloadError(str(error), "Do not use this hub") from error
        return found

    def _listing(self, source: Source) -> dict[str, "_Entry"]:
        """Ask the hub for its files, by path, as its own client does (`get_model_files`)."""
        url = f"{self.endpoint}/api/v1/models/{source.repository}/repo/files"
        query = {"Revision": source.revision, "Recursive": "true"}
        headers = {"Accept-Encoding": "identity"}
        with (
            self.failures_explained(url),
            self._client() as client,
            client.stream(
                "GET", url, params=query, headers=headers, timeout=TIMEOUT, follow_redirects=True
            ) as response,
        ):
            if response.is_error:
                raise self.refusal(response)
            content = _read(response)
        try:
            listing = _Listing.model_validate_json(content)
        except ValidationError as error:
            # What answers there is no ModelScope: a captive portal, a proxy's page.
            raise DownloadError(f"{url} does not answer like ModelScope", "Check MODELSCOPE_DOMAIN") from error
        if listing.code != _SUCCESS:
            raise DownloadError(f"{self.title} answered {listing.code} for {url}", "Try again later")
        return {entry.path: entry for entry in listing.data.files}

    def refusal(self, response: httpx2.Response) -> DownloadError:
        """Say what an error status means."""
        if response.status_code == 404:
            return DownloadError(f"{response.url} does not exist (404)", "Check MODELSCOPE_DOMAIN if it is set")
        return super().refusal(response)

    def _client(self) -> AbstractContextManager[httpx2.Client]:
        return httpx2.Client()


def _read(response: httpx2.Response) -> bytes:
    """Return an answer as it comes, never unpacked; nothing where it is longer than a listing can be."""
    content = bytearray()
    for chunk in response.iter_raw():
        content += chunk
        if len(content) > _LONGEST_LISTING:
            return b""
    return bytes(content)
