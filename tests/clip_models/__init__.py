"""CLIP models of the true architectures with random weights, small enough to build in a test.

No published weights are needed: `write_clip_model` puts a folder on disk that looks like the stock server's.
"""

from .folders import write_clip_model
from .stock import STOCK_NAMES, ModelSpec, model_spec

__all__ = ["STOCK_NAMES", "ModelSpec", "model_spec", "write_clip_model"]
