"""Image towers in the ways that CLIP models are written in, exported for one photo as Immich exports them.

Small, with random weights: class tokens, attention over patches in front of photos, pooling by attention, windows,
convolutions. Imported by name only where torch is there.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

SIDE = 32
_PATCH, _WIDTH, _HEADS, _DIMENSIONS = 8, 24, 3, 10
_ROW = SIDE // _PATCH


class Block(nn.Module):
    """A transformer's block, with PyTorch's own attention: photos first, or patches first as in open_clip's past."""

    def __init__(self, photos_first: bool) -> None:
        super().__init__()
        self.photos_first = photos_first
        self.norm, self.norm_2 = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)
        self.attention = nn.MultiheadAttention(_WIDTH, _HEADS, batch_first=photos_first)
        self.perceptron = nn.Sequential(nn.Linear(_WIDTH, 4 * _WIDTH), nn.GELU(), nn.Linear(4 * _WIDTH, _WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        y = self.perceptron(self.norm_2(x))
        return torch.add(x, y)


class VisionTransformer(nn.Module):
    """OpenAI's and open_clip's: a class token before the patches."""

    def __init__(self, photos_first: bool) -> None:
        super().__init__()
        self.photos_first = photos_first
        self.patches = nn.Conv2d(3, _WIDTH, _PATCH, _PATCH)
        self.class_token = nn.Parameter(torch.randn(_WIDTH))
        self.positions = nn.Parameter(torch.randn(_ROW**2 + 1, _WIDTH))
        self.blocks = nn.Sequential(Block(photos_first), Block(photos_first))
        self.head = nn.Linear(_WIDTH, _DIMENSIONS)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image)
        x = x.reshape(x.shape[0], x.shape[1], -1).permute(0, 2, 1)
        x = torch.cat([self.class_token.view(1, 1, -1).expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        x = self.blocks(x) if self.photos_first else self.blocks(x.permute(1, 0, 2)).permute(1, 0, 2)
        return functional.normalize(self.head(x[:, 0]), dim=-1)


class AttentionPooled(nn.Module):
    """SigLIP's: no class token, a learnt query that all patches answer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, _WIDTH, _PATCH, _PATCH)
        self.query = nn.Parameter(torch.randn(1, 1, _WIDTH))
        self.q, self.kv = nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, 2 * _WIDTH)
        self.head = nn.Linear(_WIDTH, _DIMENSIONS)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        items, patches, _ = x.shape
        q = self.q(self.query.expand(items, -1, -1)).reshape(items, 1, _HEADS, -1).transpose(1, 2)
        k, v = self.kv(x).reshape(items, patches, 2, _HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        pooled = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(items, _WIDTH)
        return functional.normalize(self.head(pooled), dim=-1)


class ConvolutionalPooled(nn.Module):
    """CLIP's ResNets: convolutions, and attention of the mean over all places, patches first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, _WIDTH, 3, 4, 1), nn.BatchNorm2d(_WIDTH), nn.ReLU(), nn.AvgPool2d(2))
        self.positions = nn.Parameter(torch.randn(_ROW**2 + 1, _WIDTH))
        self.attention = nn.MultiheadAttention(_WIDTH, _HEADS)
        self.head = nn.Linear(_WIDTH, _DIMENSIONS)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).flatten(start_dim=2).permute(2, 0, 1)
        x = torch.cat([x.mean(dim=0, keepdim=True), x], dim=0) + self.positions[:, None, :]
        pooled = self.attention(x[:1], x, x, need_weights=False)[0].squeeze(0)
        return functional.normalize(self.head(pooled), dim=-1)


class Windowed(nn.Module):
    """Attention inside windows of 2 × 2 patches, which are counted as photos meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, _WIDTH, _PATCH, _PATCH)
        self.block = Block(photos_first=True)
        self.head = nn.Linear(_WIDTH, _DIMENSIONS)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).permute(0, 2, 3, 1)
        items, rows, columns, width = x.shape
        x = x.view(items, rows // 2, 2, columns // 2, 2, width).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, width)
        x = self.block(x).view(items, -1, width).mean(dim=1)
        return functional.normalize(self.head(x), dim=-1)


class Mixing(nn.Module):
    """What no batch must be made of: each photo is seen beside the mean of all that came with it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, _DIMENSIONS)

    def forward(self, image: Tensor) -> Tensor:
        means = image.mean(dim=(2, 3))
        mixed: Tensor = self.head(means + 10 * torch.softmax(means, dim=0))
        return mixed


TOWERS = {
    "patches first": lambda: VisionTransformer(photos_first=False),
    "photos first": lambda: VisionTransformer(photos_first=True),
    "pooled by attention": AttentionPooled,
    "convolutions": ConvolutionalPooled,
    "windows": Windowed,
    "mixing": Mixing,
}


def make(kind: str) -> nn.Module:
    """Make a tower of random weights, always the same."""
    torch.manual_seed(0)
    tower: nn.Module = TOWERS[kind]()
    return tower.eval().requires_grad_(False)


def embed(tower: nn.Module, images: NDArray[np.float32]) -> NDArray[Any]:
    """Return what PyTorch computes: float32 [N, D]."""
    with torch.no_grad():
        embeddings: NDArray[Any] = tower(torch.from_numpy(images)).numpy()
    return embeddings


def export(tower: nn.Module, path: Path) -> Path:
    """Write a tower's graph as immich_model_exporter does: traced with one photo, all axes fixed."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # this exporter is the old one
            torch.onnx.export(
                tower,
                (torch.randn(1, 3, SIDE, SIDE),),
                str(path),
                input_names=["image"],
                output_names=["embedding"],
                opset_version=19,
                dynamo=False,
            )
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return path
