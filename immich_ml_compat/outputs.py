"""The last look at what a model gave, before anything is made of it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ModelOutputError


def require_finite(values: NDArray[Any], model: str) -> NDArray[np.float32]:
    """Return the values as float32, unless one is NaN or infinite: then raise ModelOutputError.

    A graph in half precision can overflow; Immich would fail on the answer, or store it.
    """
    values = values.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise ModelOutputError(f"Model '{model}' gave an output that is not finite; nothing was sent")
    return values
