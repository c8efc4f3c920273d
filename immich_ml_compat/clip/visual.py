"""The image tower of a CLIP model: OpenCLIP, SigLIP, nllb-CLIP, M-CLIP and Chinese-CLIP share this one."""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..engine import Engine, Session
from ..store import ModelFiles
from ..tensors import VALUES, look_up
from .embeddings import require_embeddings, run_tower

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

DETAIL = 3
"""A JPEG may come decoded at a half, a quarter or an eighth if that leaves so many pixels for each one of the input.

So a preview of 1440 pixels comes at a half for an input of 224, and whole for 256. How far the input is then from the
whole photo's: 48 dB or better for photos and documents (a mean of half a grey level), 38 dB at the worst, a page full
of the smallest print. In the features of a ResNet trained on photos: a cosine of 0.9997 or more, 0.999 for that page.
A factor of 1.5 would be cheaper still, at 37 dB and 0.998 for documents.
"""

Extent = tuple[float, float]

_LARGEST_SUPPORT = 3  # pixels a resampling filter sees to each side: Lanczos; bicubic 2


@dataclass(frozen=True)
class Preprocessing:
    """How a photo becomes the tower's input: `preprocess_cfg.json`, as open_clip writes it."""

    size: int
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD
    resampling: Image.Resampling = Image.Resampling.BICUBIC
    crop: bool = True
    """Keep the proportions and cut off what is not square; otherwise squash the whole picture (`do_center_crop`).

    Squashed RGB and grey pictures are the original's to the last bit; of others, which Immich does not send, the
    original squashes before it makes them RGB.
    Not `resize_mode`: SigLIP's files say `squash` there, and the stock server crops nevertheless.
    """

    @classmethod
    def read(cls, config: dict[str, Any]) -> "Preprocessing":
        """Read open_clip's fields. Raises KeyError or ValueError for what it cannot mean."""
        size, mean, std = config["size"], config.get("mean", OPENAI_MEAN), config.get("std", OPENAI_STD)
        size = int(size[0] if isinstance(size, list) else size)
        if size < 1 or len(mean) != 3 or len(std) != 3:
            raise ValueError(f"size {size}, mean {mean}, std {std}: takes a size of pixels and a number per channel")
        resampling = Image.Resampling[config.get("interpolation", "bicubic").upper()]
        return cls(size, tuple(mean), tuple(std), resampling, crop=config.get("do_center_crop") is not False)

    def __call__(self, image: Image.Image, extent: Extent | None = None) -> NDArray[np.float32]:
        """Make an RGB image a square of `size`, cropped or squashed, and normalise it: float32 [1, 3, S, S].

        `extent` is the width and height of what is to be seen of the image, where its last pixels are not all of it.
        """
        extent = extent or image.size
        if self.crop:
            square = resize_and_crop(image, self.size, self.resampling, extent)
        else:
            square = image.resize((self.size, self.size), self.resampling, box=(0, 0, *extent))
        return look_up(np.asarray(square), self._table)[None]

    @cached_property
    def _table(self) -> NDArray[np.float32]:
        mean, std = (np.array(values, np.float32)[:, None] for values in (self.mean, self.std))
        return (VALUES / np.float32(255) - mean) / std


def resize_and_crop(
    image: Image.Image, size: int, resampling: Image.Resampling, extent: Extent | None = None
) -> Image.Image:
    """Scale the shorter side to `size` and crop the centre, computing only what stays of it.

    The pixels are those of a resize of the whole and a crop, in memory that does not depend on the picture's
    shape: columns first, then rows, because Pillow clips between the two and would choose the order by cost.
    """
    width, height = extent or image.size
    left, top, right, bottom = centre_box(width, height, size)
    margin = _LARGEST_SUPPORT * max(1.0, (bottom - top) / size) + 1
    first, last = max(0, int(top - margin)), min(image.height, int(bottom + margin) + 1)
    rows = image.crop((0, first, image.width, last))
    columns = rows.resize((size, rows.height), resampling, box=(left, 0, min(right, width), rows.height))
    return columns.resize((size, size), resampling, box=(0, top - first, size, min(bottom, height) - first))


def centre_box(width: float, height: float, size: int) -> tuple[float, float, float, float]:
    """Return the part of a `width` × `height` picture that stays after the resize and the centre crop.

    As left, top, right, bottom, with the stock server's roundings (down, both times).
    """
    if width < height:
        scaled_width, scaled_height = size, int(height / width * size)
    else:
        scaled_width, scaled_height = int(width / height * size), size
    left, top = int(scaled_width / 2 - size / 2), int(scaled_height / 2 - size / 2)
    x_scale, y_scale = width / scaled_width, height / scaled_height
    return left * x_scale, top * y_scale, (left + size) * x_scale, (top + size) * y_scale


class ClipVisual:
    """An image tower, ready to use."""

    def __init__(self, name: str, session: Session, preprocess: Preprocessing) -> None:
        self._name = name
        self._session = session
        self._preprocess = preprocess

    @classmethod
    def load(cls, files: ModelFiles, engine: Engine) -> "ClipVisual":
        """Load the graph and its `preprocess_cfg.json`. Raises EngineError, OSError, KeyError or ValueError."""
        config = json.loads(files.read(files.beside("preprocess_cfg.json")))
        session = engine.load(files.graph)
        require_embeddings(session, files)
        preprocess = Preprocessing.read(config)
        side = session.inputs[0].shape[-1]
        if side not in (preprocess.size, None):
            raise ValueError(f"{files.graph} takes {side} pixels, preprocess_cfg.json says {preprocess.size}")
        return cls(files.name, session, preprocess)

    @property
    def execution_provider(self) -> str:
        """What the graph runs on."""
        return self._session.execution_provider

    def warm(self) -> None:
        """Run once."""
        self.embed(Image.new("RGB", (self._preprocess.size, self._preprocess.size)))

    @property
    def least_side(self) -> int:
        """The shorter side (pixels) that a photo should keep at least where it is decoded at a smaller scale."""
        return DETAIL * self._preprocess.size

    def embed(self, image: Image.Image, extent: Extent | None = None) -> NDArray[np.float32]:
        """Embed an RGB image, or what `extent` says of it: float32 [D], L2-normalised. Raises ModelOutputError."""
        return run_tower(self._session, {self._session.inputs[0].name: self._preprocess(image, extent)}, self._name)
