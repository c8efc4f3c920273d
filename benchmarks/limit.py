"""The most that a machine could do: bare graphs at their best setting, one scaled decode, one form, on all cores.

    python -m benchmarks.limit [CACHE]

For each graph, every engine at hand runs it with one stream of all cores and with a stream for each core, in batches
of several sizes, on inputs of the sizes that the photos give; the fastest, measured anew, counts. What the cores do
besides (decoding at the smallest scale that the task can use, reading the form) is taken to spread over all of them
without loss.
"""

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import python_multipart
from numpy.typing import NDArray
from PIL import Image

from . import bare_engines
from .forms import CONTENT_TYPE, form
from .full_size_clip import image_tower
from .models import CLIP, FACES, OCR, write_models
from .photos import photos

IN_FLIGHT = 8
"""With so many requests the server is compared with it."""

BATCHES = (1, 2, 4, 8)

_FINALISTS, _TURNS = 3, 3
"""So many of the fastest settings are measured anew, in turn, so many times each."""

_TEXT_DETECTOR_SHAPE = (3, 736, 1088)
_LINE_HEIGHT = 48
_LEAST_WIDTH_STEP = 32

Input = NDArray[np.float32]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Workload:
    """A graph and what it has to do for one round of photos."""

    name: str
    graph: Path
    batched_graph: Path
    """The same with a free batch axis."""

    shapes: Callable[[int], list[tuple[int, ...]]]
    """The inputs' shapes for a batch size: one round of photos."""


@dataclass(frozen=True)
class Best:
    """The fastest setting of a graph, and the milliseconds of the whole machine that it takes for one photo."""

    graph: str
    engine: str
    streams: int
    batch: int
    ms: float


@dataclass
class Limit:
    """What a photo of a task takes at least; in milliseconds."""

    graphs: list[Best] = field(default_factory=list)
    decode_ms: float = 0.0
    form_ms: float = 0.0
    cores: int = 1

    @property
    def per_s(self) -> float:
        """Photos a second."""
        return 1000 / (sum(best.ms for best in self.graphs) + (self.decode_ms + self.form_ms) / self.cores)


def limits(cache: Path, images: Sequence[bytes], tasks: Sequence[str], least_s: float) -> dict[str, Limit]:
    """Measure each task's limit; each setting of a graph for at least so long."""
    cores = len(os.sched_getaffinity(0))
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        every = _workloads(cache, images, Path(folder))
        for task in tasks:
            workloads = every[task]
            graphs = [_best(workload, len(images), cores, least_s) for workload in workloads]
            forms = [form(task, image) for image in images]
            decode_ms, form_ms = _median_ms(_DECODERS[task], images), _median_ms(_read_form, forms)
            found[task] = Limit(graphs, decode_ms, form_ms, cores)
    return found


def longest_call_ms(cache: Path) -> float:
    """Return what the call that nothing can cut, the text detector's, takes on one core with nothing beside it."""
    run = bare_engines.engines()["ONNX Runtime"](cache / "ocr" / OCR / "detection/model.onnx", 1, 1)
    values = np.random.default_rng(0).random((1, *_TEXT_DETECTOR_SHAPE), np.float32)
    return _median_ms(run, [values])


# ---------------------------------------------------------------- what there is to compute


def _workloads(cache: Path, images: Sequence[bytes], folder: Path) -> dict[str, list[Workload]]:
    faces, ocr = cache / "facial-recognition" / FACES, cache / "ocr" / OCR
    batched_clip = folder / "clip.onnx"
    image_tower(dynamic_batch=True).save(batched_clip, external_data=False)
    count, people, widths = len(images), _count_faces(faces, images), _line_widths(ocr, images)

    def same(shape: tuple[int, ...], total: int) -> Callable[[int], list[tuple[int, ...]]]:
        return lambda batch: [(min(batch, total - start), *shape) for start in range(0, total, batch)]

    def lines(batch: int) -> list[tuple[int, ...]]:
        groups = (widths[start : start + batch] for start in range(0, len(widths), batch))
        return [(len(group), 3, _LINE_HEIGHT, max(group)) for group in groups]

    def graph(name: str, path: Path, shapes: Callable[[int], list[tuple[int, ...]]]) -> Workload:
        return Workload(name, path / "model.onnx", path / "model.onnx", shapes)

    tower = Workload(
        "image tower", cache / "clip" / CLIP / "visual/model.onnx", batched_clip, same((3, 224, 224), count)
    )
    return {
        "ocr": [
            graph("text detector", ocr / "detection", same(_TEXT_DETECTOR_SHAPE, count)),
            graph("line recogniser", ocr / "recognition", lines),
        ],
        "faces": [
            graph("face detector", faces / "detection", same((3, 640, 640), count)),
            graph("face recogniser", faces / "recognition", same((3, 112, 112), people)),
        ],
        "clip": [tower],
    }


def _count_faces(folder: Path, images: Sequence[bytes]) -> int:
    from .reference.faces import FaceDetector

    detect = FaceDetector(folder)
    return sum(len(detect(_whole(image), {"minScore": 0.7})["boxes"]) for image in images)


def _line_widths(folder: Path, images: Sequence[bytes]) -> list[int]:
    """Return the recogniser's input widths of all lines of the photos, narrowest first."""
    from .reference.ocr import TextDetector, crop

    detect, widths = TextDetector(folder), []
    for data in images:
        image = _whole(data)
        for corners in detect(image, {})["boxes"]:
            height, width = crop(image, corners).shape[:2]
            steps = math.ceil(_LINE_HEIGHT * width / height / _LEAST_WIDTH_STEP)
            widths.append(steps * _LEAST_WIDTH_STEP)
    return sorted(widths)


# ---------------------------------------------------------------- graphs


def _best(workload: Workload, count: int, cores: int, least_s: float) -> Best:
    """Return the fastest of the few settings that came out fastest at first, by new measurements, the median of each.

    The least of many figures is less than its setting takes, as the machine is faster now and slower then.
    """
    fastest = sorted(_settings(workload, count, cores, least_s), key=lambda best: best.ms)[:_FINALISTS]
    turns = [[_measured(workload, setting, count, cores, least_s) for setting in fastest] for _ in range(_TURNS)]
    medians = np.median(turns, axis=0)
    return replace(fastest[np.argmin(medians)], ms=float(medians.min()))


def _settings(workload: Workload, count: int, cores: int, least_s: float) -> Iterator[Best]:
    for engine in bare_engines.engines():
        for streams in sorted({1, cores}):
            best_ms = math.inf
            for batch in BATCHES:
                setting = Best(workload.name, engine, streams, batch, math.nan)
                ms = _measured(workload, setting, count, cores, least_s)
                yield replace(setting, ms=ms)
                if ms > 1.1 * best_ms:
                    break  # larger batches only grow slower from here
                best_ms = min(ms, best_ms)


def _measured(workload: Workload, setting: Best, count: int, cores: int, least_s: float) -> float:
    """Return the milliseconds of the whole machine that a photo takes with a setting."""
    graph = workload.graph if setting.batch == 1 else workload.batched_graph
    run = bare_engines.engines()[setting.engine](graph, setting.streams, cores)
    random = np.random.default_rng(0)
    inputs = [random.random(shape, np.float32) for shape in workload.shapes(setting.batch)]
    return _round_s(run, inputs, setting.streams, least_s) * 1000 / count


def _round_s(run: Callable[[Input], Any], inputs: Sequence[Input], streams: int, least_s: float) -> float:
    """Return the seconds of a round of inputs, as many at a time as there are streams; the first round is left out."""
    if not inputs:
        return 0.0
    repeated = list(inputs) * math.ceil(2 * streams / len(inputs))  # no stream may stand idle at the end for long
    with ThreadPoolExecutor(streams) as pool:
        list(pool.map(run, repeated))
        start, rounds = time.perf_counter(), 0
        while rounds == 0 or time.perf_counter() - start < least_s:
            list(pool.map(run, repeated))
            rounds += 1
    return (time.perf_counter() - start) / rounds * len(inputs) / len(repeated)


# ---------------------------------------------------------------- the rest


def _whole(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data)).convert("RGB")


def _decode_at_least(shorter: int | None, longer: int | None) -> Callable[[bytes], object]:
    """Decode at the smallest scale of JPEG's that is no smaller than asked for."""

    def decode(data: bytes) -> object:
        image = Image.open(BytesIO(data))
        if shorter or longer:
            ratio = shorter / min(image.size) if shorter else (longer or 0) / max(image.size)
            image.draft("RGB", (math.ceil(image.width * ratio), math.ceil(image.height * ratio)))
        return image.load()

    return decode


_DECODERS = {
    "ocr": _decode_at_least(None, None),  # lines are cut out of the whole photo
    "faces": _decode_at_least(None, 640),
    "clip": _decode_at_least(224, None),
}


def _read_form(body: bytes) -> None:
    boundary = CONTENT_TYPE.partition("boundary=")[2]
    parts: list[bytes] = []
    keep: Any = lambda data, start, end: parts.append(data[start:end])  # noqa: E731
    parser = python_multipart.MultipartParser(boundary, {"on_part_data": keep})
    step = 1 << 16
    for start in range(0, len(body), step):
        parser.write(body[start : start + step])
    b"".join(parts)


def _median_ms(work: Callable[[Item], object], items: Sequence[Item]) -> float:
    """Return the milliseconds of an item: for each the median of five, of all the mean."""

    def once(item: Item) -> float:
        start = time.perf_counter()
        work(item)
        return (time.perf_counter() - start) * 1000

    return float(np.mean([np.median([once(item) for _ in range(5)]) for item in items]))


def main() -> None:
    """Print the limits."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cache", type=Path, nargs="?", default=Path("benchmarks/.cache"))
    parser.add_argument("--seconds", type=float, default=3.0, help="for each setting of each graph")
    options = parser.parse_args()
    write_models(options.cache)
    for task, limit in limits(options.cache, [data for _, data in photos()], list(_DECODERS), options.seconds).items():
        print(f"{task}: {limit.per_s:.1f} photos/s, decode {limit.decode_ms:.1f} ms, form {limit.form_ms:.1f} ms")
        for best in limit.graphs:
            print(f"  {best.graph}: {best.ms:.1f} ms, {best.engine}, streams {best.streams}, batch {best.batch}")


if __name__ == "__main__":
    main()
