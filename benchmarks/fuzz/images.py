"""Mutated images through a real worker process whose memory is limited.

    python -m benchmarks.fuzz.images [--count 50000] [--seed 0]

Every answer must be a 200, or a 4xx whose `detail` says something, and the worker must live. The limit is on the
worker's address space: so much more than it has with its models loaded. Prints a line for `docs/reliability.md`; a
picture that fails is made again by `mutations.picture`, from the seed and the number it is named by.
"""

import argparse
import asyncio
import json
import os
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from immich_ml_compat.link import Done, Work
from immich_ml_compat.messages import Answer, PredictRequest
from immich_ml_compat.process import Patience, WorkerDiedError, WorkerProcess

from .models import CLIP, FACES, OCR, write_image_tower, write_models
from .mutations import Picture, pictures
from .provenance import provenance
from .seeds import FORMATS, seeds

ROOM_MB = 2048
"""What the worker may take beyond its models: the largest picture alone takes 1.4 GB on its way to RGB (CMYK)."""

_CLIP = {"clip": {"visual": {"modelName": CLIP}}}
_NAMES = (("facial-recognition", FACES), ("ocr", OCR))
_FOUND = {task: {"detection": {"modelName": name}} for task, name in _NAMES}
_READ = {task: {kind: {"modelName": name} for kind in ("detection", "recognition")} for task, name in _NAMES}
_ENTRIES = tuple(json.dumps(entries) for entries in (_CLIP, _CLIP | _FOUND, _CLIP, _CLIP | _READ))


def entries_of(number: int) -> str:
    """Return what is asked of a picture. CLIP alone decodes a JPEG at a smaller scale, the others take all of it."""
    return _ENTRIES[number // len(FORMATS) % len(_ENTRIES)]


@dataclass
class Outcome:
    """What became of the pictures."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    """Answers by format and status."""

    details: Counter[str] = field(default_factory=Counter)
    """How often each reason was given, its numbers left out."""

    failures: list[str] = field(default_factory=list)
    """What was answered as it must not be."""

    slowest: tuple[float, str] = (0.0, "")
    """Seconds, and which picture it was."""

    limit_mb: float = 0.0
    peak_mb: float = 0.0
    """The worker's address space and its memory (RSS), at most."""

    def add(self, picture: Picture, answer: Answer, seconds: float) -> None:
        """Judge an answer."""
        self.statuses[picture.form, answer.status] += 1
        self.slowest = max(self.slowest, (seconds, picture.name))
        if answer.status != 200:
            self.details[re.sub(r"[-\d.]+|b'.*'", "…", str(json.loads(answer.body).get("detail")))] += 1
        if complaint := fault_of(answer):
            self.failures.append(f"{picture.name}: {complaint}")


def fault_of(answer: Answer) -> str | None:
    """Say what is wrong with the answer to an image, or None."""
    body: dict[str, Any] = json.loads(answer.body)
    if answer.status == 200:
        good = body.get("imageWidth", 0) > 0 and body.get("imageHeight", 0) > 0 and "clip" in body
    else:
        detail = body.get("detail")
        says_something = isinstance(detail, str) and detail != "" and not detail.endswith((":", ": "))
        good = 400 <= answer.status < 500 and says_something
    return None if good else f"{answer.status} {answer.body[:200]!r}"


async def run(images: Iterable[Picture]) -> Outcome:
    """Have a worker answer for pictures; its settings are this process's environment. Its death is a failure."""
    outcome = Outcome()
    worker = await WorkerProcess.start(0, Patience())
    waiting: dict[int, tuple[Picture, float]] = {}

    async def hear() -> None:
        message = await _answer(worker)
        picture, start = waiting.pop(message.id)
        outcome.add(picture, message.answer, time.perf_counter() - start)

    try:
        outcome.limit_mb = await _limit(worker)
        for number, picture in enumerate(images):
            waiting[number] = picture, time.perf_counter()
            worker.send(Work(number, PredictRequest(entries_of(number), picture.data)))
            if len(waiting) >= worker.room:
                await hear()
        while waiting:
            await hear()
        outcome.peak_mb = _status_mb(worker.pid, "VmHWM")
        await worker.stop()
    except WorkerDiedError as error:
        asked = [picture.name for picture, _ in waiting.values()]
        outcome.failures.append(f"the worker ended ({error}) at one of {asked}")
    finally:
        await worker.kill()
    return outcome


async def _answer(worker: WorkerProcess) -> Done:
    """Wait for the next answer, past what the worker tells of itself."""
    while not isinstance(message := await worker.receive(), Done):
        pass
    return message


async def _limit(worker: WorkerProcess) -> float:
    """Have the models loaded, and let the process grow by ROOM_MB and no more. Returns the limit (MB)."""
    worker.send(Work(0, PredictRequest(_ENTRIES[-1], seeds("PNG")[0][1])))
    message = await _answer(worker)
    assert message.answer.status == 200, message.answer
    limit_mb = _status_mb(worker.pid, "VmSize") + ROOM_MB
    limit = int(limit_mb * 2**20)
    resource.prlimit(worker.pid, resource.RLIMIT_AS, (limit, limit))
    return limit_mb


def _status_mb(pid: int, name: str) -> float:
    match = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match is not None, name
    return int(match[1]) / 1024


def main() -> int:
    """Run the pictures and print what became of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    where = provenance()
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder))
        write_image_tower(Path(folder))
        os.environ |= {"MACHINE_LEARNING_CACHE_FOLDER": folder, "IMMICH_LOG_LEVEL": "error", "HF_HUB_OFFLINE": "1"}
        start = time.perf_counter()
        outcome = asyncio.run(run(pictures(options.seed, options.count)))
        seconds = time.perf_counter() - start
    for detail, count in outcome.details.most_common(30):
        print(f"{count:7d}  {detail}", file=sys.stderr)
    print("\n".join(outcome.failures), file=sys.stderr)
    by_format = ", ".join(
        f"{form} {sum(count for (name, _), count in outcome.statuses.items() if name == form)}"
        f" ({outcome.statuses[form, 200]} read)"
        for form in FORMATS
    )
    print(
        f"| mutated images | {outcome.statuses.total()}: {by_format} | {len(outcome.failures)} failures; peak "
        f"{outcome.peak_mb:.0f} MB of memory under a limit of {outcome.limit_mb:.0f} MB of address space; slowest "
        f"{outcome.slowest[0]:.1f} s ({outcome.slowest[1]}); {seconds:.0f} s in all | {where} |"
    )
    return int(bool(outcome.failures))


if __name__ == "__main__":
    sys.exit(main())
