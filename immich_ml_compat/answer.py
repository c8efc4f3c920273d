"""Results to the bytes of an answer: compact JSON, UTF-8 unescaped, keys in the order of Immich 3.3."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from .messages import Answer

KEY_ORDER = ("clip", "facial-recognition", "ocr")


def success(results: Mapping[str, Any], image_size: tuple[int, int] | None) -> Answer:
    """Build the answer from each task's result; `image_size` is (width, height), None for a text."""
    body = {key: results[key] for key in KEY_ORDER if key in results}
    if image_size is not None:
        width, height = image_size
        body |= {"imageHeight": height, "imageWidth": width}
    return Answer(200, orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY))


def embedding_text(embedding: NDArray[np.float32]) -> str:
    """Write float32 [D] as a JSON array, each number in its shortest form that reads back the same."""
    return orjson.dumps(embedding, option=orjson.OPT_SERIALIZE_NUMPY).decode()
