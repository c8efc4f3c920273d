"""Models loaded and unloaded again and again: what the processes hold must not grow.

    python benchmarks/soak.py [ROUNDS]

A worker that the preloaded OCR detector keeps alive loads and unloads the recogniser in every round.
Prints the memory (PSS, all processes) along the way, and fails where it ends more than 10 MB above where it began.
"""

import os
import sys
import time

from processes import Server, serve

LIMIT_MB = 10.0
WARM_UP = 10


def settled(server: Server) -> float:
    """Return the memory once the models are unloaded."""
    time.sleep(2.0)
    return server.pss()


def main() -> int:
    """Run the rounds."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    os.environ["MACHINE_LEARNING_PRELOAD__OCR__DETECTION"] = "PP-OCRv6_small"
    with serve(1) as (server, _):
        for _ in range(WARM_UP):
            server.ocr()
            first = settled(server)
        print(f"after {WARM_UP} rounds {first:.1f} MB", flush=True)
        for done in range(1, rounds + 1):
            server.ocr()
            last = settled(server)
            if done % 20 == 0:
                print(f"after {WARM_UP + done} rounds {last:.1f} MB, {last - first:+.1f}", flush=True)
    grown = last - first
    print(f"{rounds} rounds: {grown:+.1f} MB, the bar is {LIMIT_MB:.0f}")
    return int(grown > LIMIT_MB)


if __name__ == "__main__":
    sys.exit(main())
