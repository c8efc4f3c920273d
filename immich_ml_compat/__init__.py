"""A drop-in replacement for Immich's machine-learning server."""

__version__ = "0.1.0"
