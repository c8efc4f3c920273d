"""The models known by name, and the dimension of each CLIP embedding.

Source: the stock server's list and the Immich server's table of vector sizes, 3.3; Chinese-CLIP's own
model table (OFA-Sys) for what Immich lacks.
"""

from enum import StrEnum


class Task(StrEnum):
    """What a request asks for; the value is the name in requests, answers and the cache folder."""

    CLIP = "clip"
    FACES = "facial-recognition"
    OCR = "ocr"


class ModelType(StrEnum):
    """One graph of a model; the value is the name in requests and the sub-folder in the cache."""

    VISUAL = "visual"
    TEXTUAL = "textual"
    DETECTION = "detection"
    RECOGNITION = "recognition"


TYPES = {
    Task.CLIP: (ModelType.VISUAL, ModelType.TEXTUAL),
    Task.FACES: (ModelType.DETECTION, ModelType.RECOGNITION),
    Task.OCR: (ModelType.DETECTION, ModelType.RECOGNITION),
}
"""The graphs that a model of each task has."""

_CLIP_NAMES_BY_DIMENSION = {
    512: """
        RN101__openai RN101__yfcc15m
        ViT-B-16__laion400m_e31 ViT-B-16__laion400m_e32 ViT-B-16__openai
        ViT-B-32__laion2b-s34b-b79k ViT-B-32__laion2b_e16
        ViT-B-32__laion400m_e31 ViT-B-32__laion400m_e32 ViT-B-32__openai
        XLM-Roberta-Base-ViT-B-32__laion5b_s13b_b90k XLM-Roberta-Large-Vit-B-32
    """,
    640: """
        RN50x4__openai ViT-B-16-plus-240__laion400m_e31 ViT-B-16-plus-240__laion400m_e32
        XLM-Roberta-Large-Vit-B-16Plus
    """,
    768: """
        RN50x16__openai
        ViT-B-16-SigLIP-256__webli ViT-B-16-SigLIP-384__webli ViT-B-16-SigLIP-512__webli
        ViT-B-16-SigLIP-i18n-256__webli ViT-B-16-SigLIP__webli
        ViT-B-16-SigLIP2__webli ViT-B-32-SigLIP2-256__webli
        ViT-L-14-336__openai ViT-L-14-quickgelu__dfn2b ViT-L-14__laion2b-s32b-b82k
        ViT-L-14__laion400m_e31 ViT-L-14__laion400m_e32 ViT-L-14__openai
        LABSE-Vit-L-14 XLM-Roberta-Large-Vit-L-14
        nllb-clip-base-siglip__mrl nllb-clip-base-siglip__v1
    """,
    1024: """
        RN50__cc12m RN50__openai RN50__yfcc15m RN50x64__openai
        ViT-H-14-378-quickgelu__dfn5b ViT-H-14-quickgelu__dfn5b ViT-H-14__laion2b-s32b-b79k
        ViT-L-16-SigLIP-256__webli ViT-L-16-SigLIP-384__webli
        ViT-L-16-SigLIP2-256__webli ViT-L-16-SigLIP2-384__webli ViT-L-16-SigLIP2-512__webli
        ViT-g-14__laion2b-s12b-b42k XLM-Roberta-Large-ViT-H-14__frozen_laion5b_s13b_b90k
    """,
    1152: """
        ViT-SO400M-14-SigLIP-384__webli ViT-SO400M-14-SigLIP2-378__webli ViT-SO400M-14-SigLIP2__webli
        ViT-SO400M-16-SigLIP2-256__webli ViT-SO400M-16-SigLIP2-384__webli ViT-SO400M-16-SigLIP2-512__webli
        nllb-clip-large-siglip__mrl nllb-clip-large-siglip__v1
    """,
    1536: "ViT-gopt-16-SigLIP2-256__webli ViT-gopt-16-SigLIP2-384__webli",
}

IMMICH_CLIP_DIMENSIONS = {
    name: dimension for dimension, names in _CLIP_NAMES_BY_DIMENSION.items() for name in names.split()
}
"""The embedding length of each of the 58 CLIP models that the Immich server accepts."""

CHINESE_CLIP_DIMENSIONS = {
    "cn-clip_RN50": 1024,
    "cn-clip_ViT-B-16": 512,
    "cn-clip_ViT-L-14": 768,
    "cn-clip_ViT-L-14-336": 768,
    "cn-clip_ViT-H-14": 1024,
}
"""The embedding length of each Chinese-CLIP model."""

CHINESE_CLIP_IMMICH_NAMES = {
    "cn-clip_RN50": "RN50__openai",
    "cn-clip_ViT-B-16": "ViT-B-16__openai",
    "cn-clip_ViT-L-14": "ViT-L-14__openai",
    "cn-clip_ViT-L-14-336": "ViT-L-14-336__openai",
    "cn-clip_ViT-H-14": "ViT-H-14__laion2b-s32b-b79k",
}
"""The name to select in Immich for each Chinese-CLIP model: of the same dimension and architecture."""

CLIP_DIMENSIONS = IMMICH_CLIP_DIMENSIONS | CHINESE_CLIP_DIMENSIONS

FACE_NAMES = frozenset({"antelopev2", "buffalo_s", "buffalo_m", "buffalo_l"})

OCR_NAMES = frozenset(
    [
        "PP-OCRv5_server",
        "PP-OCRv5_mobile",
        "CH__PP-OCRv5_server",
        "CH__PP-OCRv5_mobile",
        "EL__PP-OCRv5_mobile",
        "EN__PP-OCRv5_mobile",
        "ESLAV__PP-OCRv5_mobile",
        "KOREAN__PP-OCRv5_mobile",
        "LATIN__PP-OCRv5_mobile",
        "TH__PP-OCRv5_mobile",
        "PP-OCRv6_tiny",
        "PP-OCRv6_small",
        "PP-OCRv6_medium",
    ]
)


def short_name(name: str) -> str:
    """Return what OFA-Sys calls a Chinese-CLIP model."""
    return name.removeprefix("cn-clip_")


IMMICH_NAMES = {Task.CLIP: frozenset(IMMICH_CLIP_DIMENSIONS), Task.FACES: FACE_NAMES, Task.OCR: OCR_NAMES}
"""Every name of the stock server, by task."""

NAMES = IMMICH_NAMES | {Task.CLIP: frozenset(CLIP_DIMENSIONS)}
"""Every name that is answered without being on disk yet, by task."""

DEFAULT_CLIP = "ViT-B-32__openai"
"""The CLIP model that Immich is set to when it is new."""

EMBEDDED_OCR = "PP-OCRv6_small"
"""The OCR model that is installed with this package."""

_CLEANED = str.maketrans(":\\", "__", ".")


def clean_name(name: str) -> str:
    """Return a model's folder name for the name in a request, as the stock server does.

    Only the last segment of a path remains, `:` and `\\` become `_` and dots go, so that the
    result never leaves the folder it is looked up in.
    """
    return name.rsplit("/", 1)[-1].translate(_CLEANED)
