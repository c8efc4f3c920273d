"""How far a download is: a bar on a terminal, lines in the log elsewhere."""

import logging
import sys
import time
from types import TracebackType

from tqdm import tqdm

log = logging.getLogger(__name__)

_QUIET_S = 10.0
_STEP = 0.1
_LONGEST_QUIET_S = 60.0


class Progress:
    """Reports one model's download while it is open. To be used from one thread.

    In the log there is a line for every tenth of the whole, but none within 10 s of the last, and one a
    minute where a tenth takes longer.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._sizes: dict[str, int] = {}
        self._done = self._told = 0
        self._told_at = time.monotonic()
        self._bar: tqdm | None = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            self._bar = tqdm(desc=self._what, total=0, unit="B", unit_scale=True, file=sys.stderr)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def expect(self, file: str, size: int) -> None:
        """Say how many bytes a file has; saying it again changes nothing."""
        self._sizes[file] = size
        if self._bar is not None:
            self._bar.total = self._total

    @property
    def _total(self) -> int:
        return sum(self._sizes.values())

    def advance(self, count: int) -> None:
        """Count bytes that came; a negative number for some that have to come again."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._is_time():
            self._told, self._told_at = self._done, time.monotonic()
            log.info("%s: %s", self._what, self._amount())

    def _is_time(self) -> bool:
        quiet = time.monotonic() - self._told_at
        step = self._done - self._told >= max(1, self._total * _STEP)
        return quiet >= (_QUIET_S if step else _LONGEST_QUIET_S)

    def _amount(self) -> str:
        if self._done > self._total:  # a hub that does not say how long its files are
            return f"{self._done / 1e6:.1f} MB"
        return f"{100 * self._done / self._total:.0f} % of {self._total / 1e6:.1f} MB"
