"""A model's folder from an official checkpoint."""

from collections.abc import Callable
from pathlib import Path


def convert(
    checkpoint: Path, name: str, folder: Path, *, half: bool = False, progress: Callable[[int], None] = lambda _: None
) -> None:
    """Write the model's folder."""
    raise NotImplementedError
