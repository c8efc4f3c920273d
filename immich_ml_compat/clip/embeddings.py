"""What both towers of a CLIP model give."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..catalog import CLIP_DIMENSIONS
from ..engine import Array, Session
from ..errors import ModelOutputError
from ..outputs import require_finite
from ..store import ModelFiles

_NOT_NORMALISED = "unnorm_"
"""How the outputs of Chinese-CLIP's own exporter begin."""


def require_embeddings(session: Session, files: ModelFiles) -> None:
    """Raise ValueError for a graph whose first output is no [batch, D]: another kind of model lies in its place.

    Of a known name D is known as well: Immich's vectors have that length, and no other could be stored.
    """
    shape = session.outputs[0].shape
    if len(shape) != 2 or shape[1] == 1:
        raise ValueError(f"{files.graph} gives {shape}, a CLIP tower [batch, dimension]")
    dimension = CLIP_DIMENSIONS.get(files.name)
    if dimension is not None and shape[1] not in (dimension, None):
        raise ValueError(f"{files.graph} gives {shape[1]} numbers, {files.name} has {dimension}: it is another model's")


def run_tower(session: Session, inputs: Mapping[str, Array], model: str) -> NDArray[np.float32]:
    """Embed one picture or text: float32 [D], L2-normalised by the graph or here. Raises ModelOutputError."""
    (embeddings, *_) = session.run(inputs)
    embedding = require_finite(embeddings[0], model)
    if not session.outputs[0].name.startswith(_NOT_NORMALISED):
        return embedding
    # In double precision no square of a float32 is too large or too small.
    length = np.linalg.norm(embedding.astype(np.float64))
    if length == 0:
        raise ModelOutputError(f"Model '{model}' gave an output of zeros, which has no direction; nothing was sent")
    return (embedding / length).astype(np.float32)
