"""What the names of the five Chinese-CLIP models fix: Yang et al. 2022, "Chinese CLIP", table 1.

How wide and deep the towers are is read off the checkpoint.
"""

from dataclasses import dataclass

from ..catalog import CHINESE_CLIP_DIMENSIONS

CONTEXT_LENGTH = 52
VOCABULARY_SIZE = 21128
TEXT_HEAD_WIDTH = 64


@dataclass(frozen=True)
class Architecture:
    """One model; sizes in pixels, widths in numbers."""

    name: str
    dimension: int
    """Length of the embedding."""

    image_size: int = 224
    patch_size: int | None = None
    """Side of a vision transformer's patch; None for a ResNet."""

    vision_head_width: int = 64


def architecture(name: str) -> Architecture:
    """Return the architecture of a model of `CHINESE_CLIP_DIMENSIONS`."""
    return _ARCHITECTURES[name]


def _architecture(name: str, **sizes: int) -> Architecture:
    return Architecture(name, CHINESE_CLIP_DIMENSIONS[name], **sizes)


_ARCHITECTURES = {
    known.name: known
    for known in (
        _architecture("cn-clip_RN50"),
        _architecture("cn-clip_ViT-B-16", patch_size=16),
        _architecture("cn-clip_ViT-L-14", patch_size=14),
        _architecture("cn-clip_ViT-L-14-336", patch_size=14, image_size=336),
        _architecture("cn-clip_ViT-H-14", patch_size=14, vision_head_width=80),
    )
}
