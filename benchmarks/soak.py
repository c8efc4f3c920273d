"""Models loaded and unloaded again and again: what the processes hold must not grow.

    python -m benchmarks.soak [ROUNDS]

A worker that the preloaded OCR detector keeps alive loads and unloads the recogniser in every round.
Prints the memory (PSS, all processes) along the way, and fails where the last rounds hold more than 10 MB beyond
the first.
"""

import os
import statistics
import sys
import time

from .processes import Server, serve

LIMIT_MB = 10.0
GROUP = 10  # rounds whose median counts: single figures jump by what the allocator happens to keep


def settled(server: Server) -> float:
    """Return the memory once the models are unloaded."""
    time.sleep(2.0)
    return server.pss()


def main() -> int:
    """Run the rounds."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    os.environ["MACHINE_LEARNING_PRELOAD__OCR__DETECTION"] = "PP-OCRv6_small"
    with serve(1) as (server, _):
        held = []
        for done in range(1, rounds + 1):
            server.ocr()
            held.append(settled(server))
            if done % GROUP == 0:
                print(f"rounds {done - GROUP + 1} to {done}: {statistics.median(held[-GROUP:]):.1f} MB", flush=True)
        if server.loads() < rounds:
            raise SystemExit(f"only {server.loads()} loads in {rounds} rounds: the models did not come and go")
    grown = statistics.median(held[-GROUP:]) - statistics.median(held[:GROUP])
    print(f"{rounds} rounds: {grown:+.1f} MB, the bar is {LIMIT_MB:.0f}")
    return int(grown > LIMIT_MB)


if __name__ == "__main__":
    sys.exit(main())
