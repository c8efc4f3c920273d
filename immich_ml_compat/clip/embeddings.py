"""What both towers of a CLIP model give."""

from ..engine import Session
from ..store import ModelFiles


def require_embeddings(session: Session, files: ModelFiles) -> None:
    """Raise ValueError for a graph whose first output is no [batch, D]: another kind of model lies in its place."""
    shape = session.outputs[0].shape
    if len(shape) != 2 or shape[1] == 1:
        raise ValueError(f"{files.graph} gives {shape}, a CLIP tower [batch, dimension]")
