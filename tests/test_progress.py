"""How a download tells how far it is."""

import logging

import pytest

from immich_ml_compat.downloads.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still unless its one entry is changed."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    return now


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_line_for_a_tenth_but_none_within_ten_seconds(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Progress("model") as progress:
        progress.expect("a", 600_000)
        progress.expect("b", 400_000)
        for second in range(100):  # one per cent a second
            clock[0] = second
            progress.advance(10_000)
    assert lines(caplog) == [f"model: {done} % of 1.0 MB" for done in range(11, 100, 10)]


def test_a_fast_download_is_no_news(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Progress("model") as progress:
        progress.expect("a", 1_000_000)
        for _ in range(100):
            progress.advance(10_000)
    assert lines(caplog) == []


def test_a_slow_one_is_heard_of_every_minute(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Progress("model") as progress:
        progress.expect("a", 10_000_000)
        for second in range(150):
            clock[0] = second
            progress.advance(1_000)
    assert lines(caplog) == ["model: 1 % of 10.0 MB", "model: 1 % of 10.0 MB"]


def test_without_a_length_the_amount_is_told(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Progress("model") as progress:
        clock[0] = 11
        progress.advance(2_500_000)
    assert lines(caplog) == ["model: 2.5 MB"]
