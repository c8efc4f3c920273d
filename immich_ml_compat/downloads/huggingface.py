"""Hugging Face, through `huggingface_hub`'s own client.

HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and the library's other variables mean what they mean there. Its download
functions are not used: they begin a file anew in every process, and a model has files of several GB.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from fnmatch import fnmatch

import httpx2

from .failures import DownloadError
from .files import RemoteFile
from .hub import Hub
from .sources import Source

# The library would tell the hub, on every request, what this machine runs, and ask it once a day what to look for.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from huggingface_hub import HfApi, constants, get_session, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented all the same

_LIST_TIMEOUT_S = 30.0


class HuggingFace(Hub):
    """The hub at HF_ENDPOINT."""

    title = "Hugging Face"
    mirror_variable = "HF_ENDPOINT"

    def __init__(self, endpoint: str | None = None, token: str | None = None) -> None:
        """`endpoint` and `token` are those of the environment unless given."""
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self._token = token

    def address(self, source: Source) -> str:
        """Return the page of a source's repository, for people."""
        return f"{self.endpoint}/{source.repository}"

    def files(self, source: Source) -> list[RemoteFile]:
        """Return what a source's model consists of, at the revision's present commit. Raises DownloadError."""
        api = HfApi(endpoint=self.endpoint, token=self._token)
        with self.failures_explained(self.address(source)):
            info = api.model_info(
                source.repository, revision=source.revision, timeout=_LIST_TIMEOUT_S, files_metadata=True
            )
        entries = {entry.rfilename: entry for entry in info.siblings or ()}
        wanted = source.files or {
            name: name for name in entries if not any(fnmatch(name, pattern) for pattern in source.ignore)
        }
        if missing := [name for name in wanted.values() if name not in entries]:
            raise DownloadError(f"{self.address(source)} has no {missing[0]}", "Report this to the project")
        revision = info.sha or source.revision
        return [self._file(source, revision, path, entries[name]) for path, name in wanted.items()]

    def _file(self, source: Source, revision: str, path: str, entry: RepoSibling) -> RemoteFile:
        name = entry.rfilename
        known = (source.sha256 or {}).get(name)
        try:
            return RemoteFile(
                path=path,
                url=hf_hub_url(source.repository, name, revision=revision, endpoint=self.endpoint),
                size=entry.lfs.size if entry.lfs else entry.size,
                sha256=known or (entry.lfs.sha256 if entry.lfs else None),
                blob_sha1=None if entry.lfs else entry.blob_id,
            )
        except ValueError as error:
            raise DownloadError(str(error), "Do not use this hub") from error

    @contextmanager
    def failures_explained(self, url: str) -> Iterator[None]:
        """Turn the client's failures into a DownloadError."""
        with super().failures_explained(url):
            try:
                yield
            except OfflineModeIsEnabled as error:
                raise DownloadError(
                    "downloads from Hugging Face are switched off by HF_HUB_OFFLINE", "Unset HF_HUB_OFFLINE"
                ) from error
            except HfHubHTTPError as error:
                raise self.refusal(error.response) from error
            except (HFValidationError, TypeError, KeyError, ValueError) as error:
                # What answers there is no Hugging Face hub: a captive portal, a proxy's page.
                raise DownloadError(
                    f"{url} does not answer like a Hugging Face hub ({type(error).__name__})", "Check HF_ENDPOINT"
                ) from error

    def refusal(self, response: httpx2.Response) -> DownloadError:
        """Say what an error status means; Hugging Face gives 401 for repositories that do not exist, too."""
        status, code = response.status_code, response.headers.get("X-Error-Code")
        if code == "GatedRepo":
            return DownloadError(
                f"{response.url} is open only to accounts that accepted its conditions ({status})",
                "Accept them on its page and set HF_TOKEN to a token of that account",
            )
        if status in (401, 403):
            return DownloadError(
                f"Hugging Face refuses access to {response.url} ({status})",
                "Set HF_TOKEN to a valid token that may read it, or unset a HF_TOKEN that has expired",
            )
        if status == 404:
            return DownloadError(f"{response.url} does not exist (404)", "Check HF_ENDPOINT if it is set")
        return super().refusal(response)

    def _client(self) -> AbstractContextManager[httpx2.Client]:
        return nullcontext(get_session())  # the library's own, which it keeps

    def _headers(self) -> Mapping[str, str]:
        headers: dict[str, str] = build_hf_headers(token=self._token)
        return headers
