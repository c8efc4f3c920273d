"""Images of random size and text, thousands of them: what the processes hold must not grow with the shapes that came.

    python -m benchmarks.soak_images [COUNT] [--cache FOLDER]

Every image is read and searched for faces, every tenth gets a CLIP vector as well, four at a time. Prints the memory
of all processes every 500 images, the median of ten looks, and fails where that of the last fifth is more than 5 %
above that of the first fifth after 500 images: of their own memory, as what is mapped of files (PSS has it) comes and
goes with the system. Single looks lie up to a quarter apart, by what is worked on and when memory was given back last.
"""

import argparse
import statistics
import sys
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
from .servers import Server, ours

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
    write_models(options.cache)
    held: list[float] = []
    drawn = images()
    with ours(options.cache, {}) as server, ThreadPoolExecutor(IN_FLIGHT) as pool:
        for start in range(0, options.count, LOOK_EVERY):
            numbered = enumerate(islice(drawn, LOOK_EVERY), start)
            list(pool.map(lambda each: ask(server, *each), numbered))
            usage = Usage(server.pid)
            held.append(usage.own_mb())
            if (start + LOOK_EVERY) % SETTLED == 0:
                own = statistics.median(held[-SETTLED // LOOK_EVERY :])
                print(f"{start + LOOK_EVERY} images: {own:.0f} MB, PSS now {usage.pss_mb():.0f} MB", flush=True)
    settled = held[SETTLED // LOOK_EVERY :]
    group = max(1, len(settled) // PARTS)
    first, last = (statistics.median(looks) for looks in (settled[:group], settled[-group:]))
    print(f"{options.count} images: {first:.0f} MB after the first {SETTLED}, {last:.0f} MB in the end", flush=True)
    return int(last > LIMIT * first)


if __name__ == "__main__":
    sys.exit(main())
