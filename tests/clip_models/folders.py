"""Put a whole CLIP model on disk, in the layout of the stock server's cache."""

import json
import zlib
from pathlib import Path

from . import text, vision
from .stock import ModelSpec, model_spec
from .text import text_tower
from .tokenizers import make_tokenizer
from .vision import vision_tower

_OPENAI_MEAN = [0.48145466, 0.4578275, 0.40821073]
_OPENAI_STD = [0.26862954, 0.26130258, 0.27577711]
_TOKENIZER_NAMES = {
    "t5": "timm/ViT-B-16-SigLIP",
    "gemma": "timm/ViT-B-32-SigLIP2-256",
    "nllb": "facebook/nllb-200-distilled-600M",
    "xlm_roberta": "xlm-roberta-base",
}


def write_clip_model(
    folder: Path, name: str, *, seed: int = 0, external_data: bool = False, dynamic_batch: bool = False
) -> None:
    """Write `<folder>/clip/<name>/...` for one of the stock names, which says what the architecture is.

    The weights are random: the same for the same name and seed. The batch axis is 1, as in the published
    files, or symbolic with `dynamic_batch`.
    """
    spec = model_spec(name)
    root = folder / "clip" / name
    seeds = [zlib.crc32(f"{name}/{tower}/{seed}".encode()) for tower in ("visual", "textual")]

    image_graph = vision_tower(spec.vision, spec.dimension, seed=seeds[0], dynamic_batch=dynamic_batch)
    image_graph.save(root / "visual" / "model.onnx", external_data=external_data)
    _write_json(root / "visual" / "preprocess_cfg.json", _preprocess_config(spec))

    files = make_tokenizer(spec.text.tokenizer)
    vocabulary = files.tokenizer.get_vocab_size()
    text_graph = text_tower(spec.text, vocabulary, spec.dimension, seed=seeds[1], dynamic_batch=dynamic_batch)
    text_graph.save(root / "textual" / "model.onnx", external_data=external_data)
    files.tokenizer.save(str(root / "textual" / "tokenizer.json"))
    _write_json(root / "textual" / "tokenizer_config.json", files.config)
    _write_json(root / "config.json", _model_config(spec, vocabulary))


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def _preprocess_config(spec: ModelSpec) -> dict[str, object]:
    siglip = spec.vision.kind == "siglip"
    halves = siglip or spec.name == "ViT-L-14__laion2b-s32b-b82k"
    squash = siglip or spec.name.endswith("__dfn5b")
    return {
        "size": [spec.vision.image_size] * 2,
        "mode": "RGB",
        "mean": [0.5] * 3 if halves else _OPENAI_MEAN,
        "std": [0.5] * 3 if halves else _OPENAI_STD,
        "interpolation": "bicubic",
        "resize_mode": "squash" if squash else "shortest",
        "fill_color": 0,
    }


def _model_config(spec: ModelSpec, vocabulary: int) -> dict[str, object]:
    """OpenCLIP's config of the model, with the reduced sizes."""
    config: dict[str, object] = {"embed_dim": spec.dimension}
    if "quickgelu" in spec.name:
        config["quick_gelu"] = True
    if spec.vision.kind == "siglip":
        config |= {"init_logit_bias": -10, "custom_text": True}
    return config | {"vision_cfg": _vision_config(spec), "text_cfg": _text_config(spec, vocabulary)}


def _vision_config(spec: ModelSpec) -> dict[str, object]:
    size = spec.vision.image_size
    if spec.vision.kind == "resnet":
        layers = list(vision.RESNET_LAYERS)
        return {"image_size": size, "layers": layers, "width": vision.RESNET_WIDTH, "patch_size": None}
    if spec.vision.kind == "siglip":
        name = f"vit_base_patch{spec.vision.patch_size}_siglip_{size}"
        timm: dict[str, object] = {"timm_model_name": name, "timm_model_pretrained": False}
        return {"image_size": size, **timm, "timm_pool": "map", "timm_proj": "linear"}
    return {
        "image_size": size,
        "layers": vision.LAYERS,
        "width": vision.WIDTH,
        "head_width": vision.WIDTH // vision.HEADS,
        "patch_size": spec.vision.patch_size,
    }


def _text_config(spec: ModelSpec, vocabulary: int) -> dict[str, object]:
    kind = spec.text.kind
    if kind in {"m2m100", "xlm_roberta"} and not spec.text.mask_input:
        hub_name = _TOKENIZER_NAMES[spec.text.tokenizer]
        pooling = {"hf_proj_type": "linear", "hf_pooler_type": "cls_pooler"}
        if kind == "xlm_roberta":
            pooling = {"hf_pooler_type": "mean_pooler"}
        return {"hf_model_name": hub_name, "hf_tokenizer_name": hub_name, **pooling}
    config: dict[str, object] = {
        "context_length": spec.text.context_length,
        "vocab_size": vocabulary,
        "width": text.WIDTH,
        "heads": text.HEADS,
        "layers": text.LAYERS,
    }
    if kind != "siglip":  # of M-CLIP too: its config.json is that of the model that its image tower comes from
        return config
    config |= {"hf_tokenizer_name": _TOKENIZER_NAMES[spec.text.tokenizer]}
    config |= {"tokenizer_kwargs": {"clean": "canonicalize"}, "no_causal_mask": True, "proj_bias": True}
    config |= {"pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
    return config | ({"act_kwargs": {"approximate": "tanh"}} if spec.text.activation == "gelu_tanh" else {})
