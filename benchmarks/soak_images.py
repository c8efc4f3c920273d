"""Images of random size and text, thousands of them: what the processes hold must not grow with the shapes that came.

    python -m benchmarks.soak_images [COUNT] [--cache FOLDER]

Every image is read and searched for faces, every tenth gets a CLIP vector as well, four at a time. Every 500 images
prints the memory of all processes, the median of ten looks, and what they hold at rest, a quarter of a minute later.
Fails where either is more than 5 % higher in the last fifth than in the first fifth after 500 images: of their own
memory, as what is mapped of files (PSS has it) comes and goes with the system. Single looks lie up to a quarter apart,
by what is worked on and when memory was given back last; at rest that is over.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import islice
from pathlib import Path

import httpx
import numpy as np
from PIL import Image, ImageDraw

from .forms import CONTENT_TYPE, form
from .models import write_models
from .photos import chinese, english, font
from .replay import Usage
from .servers import AT_REST_S, Server, ours

IN_FLIGHT = 4
SETTLED = 500
LOOK_EVERY = 50
PARTS = 5
LIMIT = 1.05
_SIDES = (40, 1600)


def images(seed: int = 0) -> Iterator[bytes]:
    """Draw images for ever: sides from 40 to 1600 pixels, small ones as often as large, with 0 to 8 lines of text."""
    random = np.random.default_rng(seed)
    while True:
        width, height = (int(_SIDES[0] * (_SIDES[1] / _SIDES[0]) ** random.random()) for _ in "wh")
        image = Image.new("RGB", (width, height), tuple(random.integers(120, 256, 3).tolist()))
        draw = ImageDraw.Draw(image)
        for _ in range(random.integers(0, 9)):
            size = int(random.integers(12, 60))
            letters = int(random.integers(1, 40))
            text = chinese(random, letters) if random.random() < 0.5 else english(random, letters)
            place = random.uniform(0, (width, height)).tolist()
            draw.text(place, text, "black", font(size))
        file = BytesIO()
        image.save(file, "JPEG", quality=80)
        yield file.getvalue()


def ask(server: Server, number: int, image: bytes) -> None:
    """Have one image read, searched for faces and, every tenth, embedded. Raises RuntimeError for any but a 200."""
    for task in ("ocr", "faces", "clip") if number % 10 == 0 else ("ocr", "faces"):
        url, headers = f"http://127.0.0.1:{server.port}/predict", {"Content-Type": CONTENT_TYPE}
        answer = httpx.post(url, content=form(task, image), headers=headers, timeout=300)
        if answer.status_code != 200:
            raise RuntimeError(f"{task} of image {number}: {answer.status_code} {answer.text[:300]}")


def main() -> int:
    """Send the images."""
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=int, nargs="?", default=10_000)
    parser.add_argument(
        "--cache", type=Path, default=Path(__file__).parent / ".cache", help="models, made where missing"
    )
    options = parser.parse_args()
    if options.count < 2 * SETTLED:
        parser.error(f"COUNT is {options.count}; growth shows in {2 * SETTLED} or more")
    write_models(options.cache)
    busy: list[float] = []
    at_rest: list[float] = []
    drawn = images()
    with ours(options.cache, {}) as server, ThreadPoolExecutor(IN_FLIGHT) as pool:
        for start in range(0, options.count, LOOK_EVERY):
            numbered = enumerate(islice(drawn, LOOK_EVERY), start)
            list(pool.map(lambda each: ask(server, *each), numbered))
            usage = Usage(server.pid)
            busy.append(usage.own_mb())
            if (start + LOOK_EVERY) % SETTLED == 0:
                now, own = usage.pss_mb(), statistics.median(busy[-SETTLED // LOOK_EVERY :])
                time.sleep(AT_REST_S)
                at_rest.append(Usage(server.pid).own_mb())
                done = start + LOOK_EVERY
                print(f"{done} images: {own:.0f} MB, at rest {at_rest[-1]:.0f}, PSS before {now:.0f} MB", flush=True)
    grown = [grows("busy", busy, SETTLED // LOOK_EVERY), grows("at rest", at_rest, 1)]
    return int(any(grown))


def grows(what: str, looks: list[float], settled: int) -> bool:
    """Say how much was held (MB) in the first fifth of the looks after the `settled` first ones, and in the last."""
    looks = looks[settled:]
    group = max(1, len(looks) // PARTS)
    first, last = (statistics.median(part) for part in (looks[:group], looks[-group:]))
    print(f"{what}: {first:.0f} MB after the first {SETTLED} images, {last:.0f} MB in the end", flush=True)
    return last > LIMIT * first


if __name__ == "__main__":
    sys.exit(main())
