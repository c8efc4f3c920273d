"""Chinese-CLIP models with random weights, made by its own code: the oracle, and checkpoints like the official ones."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from immich_ml_compat.catalog import CHINESE_CLIP_DIMENSIONS
from tests.oracles import chinese_clip, oracle

NAMES = sorted(CHINESE_CLIP_DIMENSIONS)

_TEXT_TOWERS = {"cn-clip_RN50": "RBT3-chinese", "cn-clip_ViT-H-14": "RoBERTa-wwm-ext-large-chinese"}

_SMALL_TEXT = {"text_hidden_size": 128, "text_num_attention_heads": 2, "text_intermediate_size": 256}
_SMALL_VISION: dict[str, dict[str, Any]] = {
    "cn-clip_RN50": {"vision_width": 16, "vision_layers": [1, 2, 1, 2]},
    "cn-clip_ViT-H-14": {"vision_width": 160, "vision_layers": 2},
}


def original(name: str, *, small: bool = True, layers: int | None = None, seed: int = 0) -> Any:
    """Return the model as cn_clip builds it (a torch module, float32), its numbers drawn at random.

    A small one has fewer and narrower layers; image size, patch and dimension are the name's own. `layers` leaves the
    width and changes the depth.
    """
    package = chinese_clip()
    torch = oracle("torch")
    torch.manual_seed(seed)
    configuration = _configuration(Path(package.__file__ or "").parent / "model_configs", name)
    if small:
        configuration |= _SMALL_VISION.get(name, {"vision_width": 128, "vision_layers": 2})
        configuration |= _SMALL_TEXT | {"text_num_hidden_layers": 2}
    if layers is not None:
        configuration |= {"vision_layers": layers, "text_num_hidden_layers": layers}
    model = oracle("cn_clip.clip.model").CLIP(**configuration).eval()
    # What training leaves differs from what initialisation gives: no zeros, no ones, no equal rows.
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            elif key.endswith(("running_mean", "bias")):
                tensor.normal_(0, 0.1)
            elif tensor.ndim == 1 and "norm" not in key.lower():
                tensor.add_(torch.randn_like(tensor) * 0.1)
            elif tensor.ndim == 1:
                tensor.uniform_(0.8, 1.2)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def save_checkpoint(model: Any, path: Path, *, half: bool = False) -> None:
    """Write a checkpoint as the project's training writes it."""
    torch = oracle("torch")
    state = {f"module.{key}": tensor.half() if half and tensor.is_floating_point() else tensor
             for key, tensor in model.state_dict().items()}  # fmt: skip
    torch.save({"epoch": 10, "step": 100, "name": "test", "state_dict": state}, path)


@dataclass(frozen=True)
class _Files:
    vision: str
    text: str


def _configuration(folder: Path, name: str) -> dict[str, Any]:
    files = _Files(name.removeprefix("cn-clip_"), _TEXT_TOWERS.get(name, "RoBERTa-wwm-ext-base-chinese"))
    found: dict[str, Any] = {}
    for file in (files.vision, files.text):
        found |= json.loads((folder / f"{file}.json").read_text(encoding="utf-8"))
    if isinstance(found["vision_layers"], str):
        found["vision_layers"] = json.loads(found["vision_layers"])
    return found
