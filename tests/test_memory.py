"""What this process keeps of memory, and what it gives back."""

import ctypes
import subprocess
import sys

import pytest

ROUNDS = """
import resource, sys
from immich_ml_compat.memory import keep_freed, release, resident_bytes
if sys.argv[1] == "keep":
    keep_freed(16_000_000)
def request():
    return [b"x" * 300_000 for _ in range(8)]  # a preview's copies on its way through the front
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    request()
before = faults()
for _ in range(100):
    request()
after, held = faults(), resident_bytes()
photo = b"x" * 60_000_000  # larger than what is kept
del photo
print(after - before, resident_bytes() - held)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library than glibc")
def test_memory_that_requests_have_freed_is_handed_out_again() -> None:
    def rounds(how: str) -> tuple[int, int]:
        run = subprocess.run([sys.executable, "-c", ROUNDS, how], check=True, capture_output=True, text=True)
        faults, left = map(int, run.stdout.split())
        return faults, left

    plain, _ = rounds("as it is")
    kept, left_of_large = rounds("keep")
    assert plain > 10_000  # or this test shows nothing: a page each time it is handed out again
    assert kept < plain / 20
    assert left_of_large < 5_000_000
