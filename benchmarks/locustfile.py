"""What people do to a server, for locust (`pip install locust`; no part of the locks).

    python -m locust -f benchmarks/locustfile.py --host http://localhost:3003 --headless -u 9 -r 9 -t 2m

Two kinds of users, weighed as given here: one who browses and types searches, and Immich's own queues after an import,
each of which keeps so many photos in flight: one queue for smart search, one for faces, one for OCR. More of one kind:
`locust … BrowsingPerson` or `locust … ImportingServer` runs only that.
"""

import random
import time
from itertools import cycle
from typing import Any

from locust import HttpUser, between, constant, events, task

from benchmarks.forms import CONTENT_TYPE, QUERIES, form
from benchmarks.photos import photos

_IMAGES: list[bytes] = []
_QUEUES = cycle(("ocr", "faces", "clip"))
_HEADERS = {"Content-Type": CONTENT_TYPE}


@events.test_start.add_listener
def draw_photos(**_: Any) -> None:
    """Draw the photos once, before anybody sends one."""
    if not _IMAGES:
        _IMAGES.extend(data for _, data in photos())


class _Client(HttpUser):
    abstract = True

    def send(self, name: str, payload: bytes | str) -> None:
        """Send a task's request; anything but a 200 counts as a failure."""
        self.client.post("/predict", data=form(name, payload), headers=_HEADERS, name=name)


class BrowsingPerson(_Client):
    """Types a search, looks at what it found, types the next; Immich asks for `/ping` meanwhile."""

    weight = 1
    wait_time = between(1, 5)

    @task(10)
    def search(self) -> None:
        """Search for something new: Immich itself remembers the queries that it has asked."""
        self.send("search", f"{random.choice(QUERIES)} {time.monotonic_ns() % 10_000}")

    @task(1)
    def ping(self) -> None:
        """Ask whether it is there."""
        self.client.get("/ping", name="ping")


class ImportingServer(_Client):
    """One slot of Immich's job queues after an import: the next photo as soon as one is answered."""

    weight = 2
    wait_time = constant(0)

    def on_start(self) -> None:
        """Begin at a photo and a queue of one's own."""
        start = random.randrange(len(_IMAGES))
        self._images = cycle(_IMAGES[start:] + _IMAGES[:start])
        self._queue = next(_QUEUES)

    @task
    def process(self) -> None:
        """Send the next photo."""
        self.send(self._queue, next(self._images))
