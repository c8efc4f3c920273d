"""CLIP's towers: the photo resized whole and then cropped, the query cut or padded to the context."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from .sessions import load


def vector(values: NDArray[np.float32]) -> str:
    """Write an embedding as the JSON array inside a string that Immich expects."""
    return orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY).decode()


class ImageTower:
    """An OpenCLIP image tower."""

    def __init__(self, folder: Path) -> None:
        """Load `<folder>/visual`."""
        config = json.loads((folder / "visual/preprocess_cfg.json").read_bytes())
        size = config["size"]
        self._size: int = size[0] if isinstance(size, list) else size
        self._resampling = Image.Resampling[config["interpolation"].upper()]
        self._mean, self._std = (np.array(config[name], np.float32) for name in ("mean", "std"))
        self._session = load(folder / "visual/model.onnx")

    def __call__(self, image: Image.Image, options: dict[str, Any]) -> str:
        """Embed an RGB image."""
        embedding = self._session.run(None, {"image": self._preprocess(image)})[0][0]
        return vector(embedding)

    def _preprocess(self, image: Image.Image) -> NDArray[np.float32]:
        size, (width, height) = self._size, image.size
        scaled = (size, int(height / width * size)) if width < height else (int(width / height * size), size)
        image = image.resize(scaled, self._resampling)
        left, top = int(image.width / 2 - size / 2), int(image.height / 2 - size / 2)
        pixels = np.asarray(image.crop((left, top, left + size, top + size)), np.float32) / 255.0
        return np.expand_dims(((pixels - self._mean) / self._std).transpose(2, 0, 1), 0)


class TextTower:
    """An OpenCLIP text tower."""

    def __init__(self, folder: Path) -> None:
        """Load `<folder>/textual`."""
        length = json.loads((folder / "config.json").read_bytes())["text_cfg"].get("context_length", 77)
        pad = json.loads((folder / "textual/tokenizer_config.json").read_bytes())["pad_token"]
        self._tokenizer = Tokenizer.from_file(str(folder / "textual/tokenizer.json"))
        self._tokenizer.enable_padding(length=length, pad_token=pad, pad_id=self._tokenizer.token_to_id(pad))
        self._tokenizer.enable_truncation(max_length=length)
        self._session = load(folder / "textual/model.onnx")

    def __call__(self, text: str, options: dict[str, Any]) -> str:
        """Embed a query."""
        ids = self._tokenizer.encode(" ".join(text.split())).ids
        return vector(self._session.run(None, {"text": np.array([ids], np.int32)})[0][0])
