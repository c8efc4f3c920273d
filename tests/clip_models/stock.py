"""The stock CLIP names, and what each name says of its model: sizes, activations, tokenizer, embedding dimension."""

import re
from dataclasses import dataclass
from typing import Literal

from .layers import Activation

VisionKind = Literal["vit", "resnet", "siglip"]
TextKind = Literal["clip", "siglip", "m2m100", "xlm_roberta", "bert"]
TokenizerKind = Literal["clip", "t5", "gemma", "nllb", "xlm_roberta", "bert"]

_OPENCLIP = """
RN101__openai RN101__yfcc15m RN50__cc12m RN50__openai RN50__yfcc15m RN50x16__openai RN50x4__openai RN50x64__openai
ViT-B-16-SigLIP-256__webli ViT-B-16-SigLIP-384__webli ViT-B-16-SigLIP-512__webli ViT-B-16-SigLIP-i18n-256__webli
ViT-B-16-SigLIP__webli ViT-B-16-plus-240__laion400m_e31 ViT-B-16-plus-240__laion400m_e32 ViT-B-16__laion400m_e31
ViT-B-16__laion400m_e32 ViT-B-16__openai ViT-B-32__laion2b-s34b-b79k ViT-B-32__laion2b_e16 ViT-B-32__laion400m_e31
ViT-B-32__laion400m_e32 ViT-B-32__openai ViT-H-14-378-quickgelu__dfn5b ViT-H-14-quickgelu__dfn5b
ViT-H-14__laion2b-s32b-b79k ViT-L-14-336__openai ViT-L-14-quickgelu__dfn2b ViT-L-14__laion2b-s32b-b82k
ViT-L-14__laion400m_e31 ViT-L-14__laion400m_e32 ViT-L-14__openai ViT-L-16-SigLIP-256__webli
ViT-L-16-SigLIP-384__webli ViT-SO400M-14-SigLIP-384__webli ViT-g-14__laion2b-s12b-b42k
XLM-Roberta-Base-ViT-B-32__laion5b_s13b_b90k XLM-Roberta-Large-ViT-H-14__frozen_laion5b_s13b_b90k
nllb-clip-base-siglip__mrl nllb-clip-base-siglip__v1 nllb-clip-large-siglip__mrl nllb-clip-large-siglip__v1
ViT-B-16-SigLIP2__webli ViT-B-32-SigLIP2-256__webli ViT-L-16-SigLIP2-256__webli ViT-L-16-SigLIP2-384__webli
ViT-L-16-SigLIP2-512__webli ViT-SO400M-14-SigLIP2-378__webli ViT-SO400M-14-SigLIP2__webli
ViT-SO400M-16-SigLIP2-256__webli ViT-SO400M-16-SigLIP2-384__webli ViT-SO400M-16-SigLIP2-512__webli
ViT-gopt-16-SigLIP2-256__webli ViT-gopt-16-SigLIP2-384__webli
"""
# M-CLIP: the OpenCLIP model that each one takes its image tower from.
_MCLIP = {
    "LABSE-Vit-L-14": "ViT-L-14__openai",
    "XLM-Roberta-Large-Vit-B-16Plus": "ViT-B-16-plus-240__laion400m_e32",
    "XLM-Roberta-Large-Vit-B-32": "ViT-B-32__openai",
    "XLM-Roberta-Large-Vit-L-14": "ViT-L-14__openai",
}
# Likewise for the OpenCLIP models that join a published text tower to an image tower.
_JOINED = {
    "XLM-Roberta-Base-ViT-B-32": "ViT-B-32__laion2b_e16",
    "XLM-Roberta-Large-ViT-H-14": "ViT-H-14__laion2b-s32b-b79k",
    "nllb-clip-base-siglip": "ViT-B-16-SigLIP-384__webli",
    "nllb-clip-large-siglip": "ViT-SO400M-14-SigLIP-384__webli",
}
STOCK_NAMES = (*_OPENCLIP.split(), *_MCLIP)

_RESNETS = {
    "RN50": (1024, 224),
    "RN101": (512, 224),
    "RN50x4": (640, 288),
    "RN50x16": (768, 384),
    "RN50x64": (1024, 448),
}
_CLIP_DIMENSIONS = {"B": 512, "L": 768, "H": 1024, "g": 1024}
_SIGLIP_DIMENSIONS = {"B": 768, "L": 1024, "SO400M": 1152, "gopt": 1536}


@dataclass(frozen=True)
class VisionSpec:
    kind: VisionKind
    image_size: int
    patch_size: int
    activation: Activation


@dataclass(frozen=True)
class TextSpec:
    kind: TextKind
    tokenizer: TokenizerKind
    context_length: int
    activation: Activation
    mask_input: bool = False  # M-CLIP: `input_ids` and `attention_mask` instead of `text`


@dataclass(frozen=True)
class ModelSpec:
    name: str
    dimension: int
    vision: VisionSpec
    text: TextSpec


def model_spec(name: str) -> ModelSpec:
    """Describe one of the stock models."""
    if name not in STOCK_NAMES:
        raise ValueError(f"{name} is no stock CLIP model")
    architecture = name.partition("__")[0]
    if name in _MCLIP or architecture in _JOINED:
        image_model = model_spec(_MCLIP.get(name) or _JOINED[architecture])
        return ModelSpec(name, image_model.dimension, image_model.vision, _foreign_text(name))
    if architecture in _RESNETS:
        dimension, image_size = _RESNETS[architecture]
        vision = VisionSpec("resnet", image_size, 0, "relu")
        return ModelSpec(name, dimension, vision, TextSpec("clip", "clip", 77, _clip_activation(name)))
    size, patch_size, image_size = _parse_vit(architecture)
    if "SigLIP" in architecture:
        return _siglip(name, _SIGLIP_DIMENSIONS[size], patch_size, image_size)
    activation = _clip_activation(name)
    dimension = 640 if "plus" in architecture else _CLIP_DIMENSIONS[size]
    vision = VisionSpec("vit", image_size, patch_size, activation)
    return ModelSpec(name, dimension, vision, TextSpec("clip", "clip", 77, activation))


def _parse_vit(architecture: str) -> tuple[str, int, int]:
    match = re.fullmatch(r"ViT-(\w+)-(\d\d)(?:-[A-Za-z]\w*)*?(?:-(\d{3}))?(?:-quickgelu)?", architecture)
    if match is None:
        raise ValueError(f"{architecture} is no vision transformer")
    size, patch_size, image_size = match.groups()
    return size, int(patch_size), int(image_size or 224)


def _clip_activation(name: str) -> Activation:
    return "quick_gelu" if name.endswith("__openai") or "quickgelu" in name else "gelu"


def _siglip(name: str, dimension: int, patch_size: int, image_size: int) -> ModelSpec:
    second = "SigLIP2" in name
    activation: Activation = "gelu_tanh" if second else "gelu"
    vision = VisionSpec("siglip", image_size, patch_size, activation)
    return ModelSpec(name, dimension, vision, TextSpec("siglip", "gemma" if second else "t5", 64, activation))


def _foreign_text(name: str) -> TextSpec:
    if name.startswith("nllb"):
        return TextSpec("m2m100", "nllb", 77, "relu")
    if name.startswith("LABSE"):
        return TextSpec("bert", "bert", 77, "gelu", mask_input=True)
    return TextSpec("xlm_roberta", "xlm_roberta", 77, "gelu", mask_input=name in _MCLIP)
