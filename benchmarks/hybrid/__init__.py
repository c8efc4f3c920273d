"""Immich's hybrid search (patches/*/hybrid-search.patch): does it find what stands in a photo, and at what cost?

    python -m benchmarks.hybrid IMMICH_URL API_KEY DATABASE_URL [quality] [speed]

See README.md in this folder.
"""
