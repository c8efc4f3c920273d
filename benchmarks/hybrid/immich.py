"""An Immich library of made-up photos: written into its database by `psql`, searched through its API."""

import re
import subprocess
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import httpx

from .space import Vectors, literal

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_INDEX = (
    "create index clip_index on smart_search using hnsw (embedding vector_cosine_ops) "
    "with (ef_construction = 300, m = 16)"
)
_EMPTY = "delete from asset_ocr; delete from ocr_search; delete from smart_search; delete from asset;"


def search_text(lines: Iterable[str]) -> str:
    """Return what Immich writes to `ocr_search.text`: words, and every two neighbours of a run of CJK characters."""
    tokens: list[str] = []
    for run in re.findall(rf"[{_CJK}]+|[^\s{_CJK}]+", " ".join(lines)):
        pairs = [run[i : i + 2] for i in range(len(run) - 1)] if re.match(f"[{_CJK}]", run) else []
        tokens += pairs or [run]
    return " ".join(tokens)


def asset_id(name: str) -> str:
    """Return the id of the asset of that name."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


@dataclass(frozen=True)
class Database:
    """Immich's database, by its address (postgres://user@host:port/name)."""

    url: str

    def run(self, script: str) -> str:
        """Have psql run a script and return its bare output. Raises CalledProcessError where a statement fails."""
        command = ["psql", self.url, "-qAtX", "-v", "ON_ERROR_STOP=1"]
        return subprocess.run(command, input=script, text=True, check=True, capture_output=True).stdout.strip()

    def fill(self, names: Sequence[str], texts: Sequence[Sequence[str]], vectors: Vectors) -> None:
        """Put so many photos in the place of all that are there; `vectors` is float32 [photos, 512]."""
        owner = self.run('select id from "user" limit 1')
        ids = [asset_id(name) for name in names]
        self.run(f"{_EMPTY} drop index if exists clip_index;")
        self._copy("asset_upload", ((i, name) for i, name in zip(ids, names, strict=True)), before=_UPLOAD)
        self.run(_ASSETS.format(owner=owner))
        read = [(i, lines) for i, lines in zip(ids, texts, strict=True) if lines]
        self._copy('asset_ocr ("assetId", text, x1, y1, x2, y2, x3, y3, x4, y4, "boxScore", "textScore")', _lines(read))
        self._copy('ocr_search ("assetId", text)', ((i, search_text(lines)) for i, lines in read))
        self._copy('smart_search ("assetId", embedding)', ((i, literal(v)) for i, v in zip(ids, vectors, strict=True)))
        self.run(f"set maintenance_work_mem = '1GB'; {_INDEX};")
        self.run("vacuum analyze;")

    def _copy(self, table: str, rows: Iterable[Sequence[str]], before: str = "") -> None:
        data = "\n".join("\t".join(value.replace("\\", "\\\\") for value in row) for row in rows)
        self.run(f"{before}copy {table} from stdin;\n{data}\n\\.\n")


_UPLOAD = "drop table if exists asset_upload; create table asset_upload (id uuid, name text);\n"
_ASSETS = """
insert into asset (id, "ownerId", type, "originalPath", "originalFileName", checksum, "checksumAlgorithm",
                   "fileCreatedAt", "fileModifiedAt", "localDateTime")
select id, '{owner}', 'IMAGE', '/none/' || name, name, uuid_send(id), 'sha1-path', taken, taken, taken
from (
  select *, timestamptz '2020-01-01' + (hashtext(name) & 65535) * interval '1 hour' as taken from asset_upload
) as new;
insert into asset_exif ("assetId") select id from asset_upload;
drop table asset_upload;
"""


def _lines(read: Iterable[tuple[str, Sequence[str]]]) -> Iterable[list[str]]:
    for asset, lines in read:
        for line in lines:
            yield [asset, line, *"0010110111"]


@dataclass(frozen=True)
class Immich:
    """An Immich server with the patch."""

    client: httpx.Client

    def search(self, query: str, *, hybrid: bool, page: int = 1, size: int = 100, **options: object) -> list[str]:
        """Return the names of the photos on a page of the smart search. Raises HTTPStatusError."""
        body = {"query": query, "hybrid": hybrid, "page": page, "size": size, **options}
        return self._names("/api/search/smart", body)

    def search_ocr(self, query: str) -> list[str]:
        """Return the names of the photos that Immich's own search for text gives (by date)."""
        return self._names("/api/search/metadata", {"ocr": query})

    def _names(self, path: str, body: dict[str, object]) -> list[str]:
        answer = self.client.post(path, json=body).raise_for_status().json()
        return [asset["originalFileName"] for asset in answer["assets"]["items"]]
