"""Chinese-CLIP's graphs beside cn_clip's own torch code, with the same random weights."""

import collections
import errno
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image

from immich_ml_compat.catalog import CHINESE_CLIP_DIMENSIONS, ModelType, Task
from immich_ml_compat.chinese_clip.architectures import architecture
from immich_ml_compat.chinese_clip.checkpoint import CheckpointError, open_checkpoint
from immich_ml_compat.chinese_clip.conversion import convert
from immich_ml_compat.chinese_clip.vision import image_tower
from immich_ml_compat.chinese_clip.weights import Weights
from immich_ml_compat.clip.textual import ClipTextual
from immich_ml_compat.clip.visual import ClipVisual
from immich_ml_compat.engine import Session
from immich_ml_compat.engine.onnxruntime import OnnxRuntimeEngine
from immich_ml_compat.store import ModelFiles, ModelKey, ModelStore
from tests.chinese_clip import NAMES, original, save_checkpoint
from tests.oracles import chinese_clip, oracle

BASE = "cn-clip_ViT-B-16"
LAYERS = 2
SIZES = [(1, 1), (37, 211), (640, 480), (223, 225), (1000, 10)]
TEXTS = ["", "狗", "雪地里奔跑的狗", "a photo of 两只猫, on the sofa!", "长" * 49, "很长的一句话。" * 40]


class Converted:
    """One small model: the original, its checkpoint, and what was made of it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.original = original(name)
        self.checkpoint = folder / "checkpoint.pt"
        save_checkpoint(self.original, self.checkpoint)
        self.caches = {half: folder / ("half" if half else "single") for half in (False, True)}
        for half, cache in self.caches.items():
            convert(self.checkpoint, name, cache / "clip" / name, half=half)

    def files(self, kind: ModelType, *, half: bool = False) -> ModelFiles:
        found = ModelStore(self.caches[half]).find(ModelKey(Task.CLIP, self.name, kind))
        assert found is not None
        return found

    def session(self, kind: ModelType, *, half: bool = False) -> Session:
        return OnnxRuntimeEngine().load(self.files(kind, half=half).graph)


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    chinese_clip()
    return Converted(request.param, tmp_path_factory.mktemp("chinese_clip"))


def pictures() -> list[Image.Image]:
    noise = np.random.default_rng(0)
    small = [noise.integers(0, 256, (7, 5, 3), np.uint8) for _ in SIZES]
    return [Image.fromarray(pixels).resize(size) for pixels, size in zip(small, SIZES, strict=True)]


def cosines(left: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
    lengths = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    cosine: NDArray[Any] = (left * right).sum(-1) / lengths
    return cosine


def bar(half: bool) -> float:
    return 0.999 if half else 0.99999


# ---------------------------------------------------------------- the same embeddings


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_a_photo_has_the_original_embedding(model: Converted, half: bool) -> None:
    """From the picture to the embedding: pre-processing, graph and normalisation."""
    package = chinese_clip()
    transform = package.image_transform(architecture(model.name).image_size)
    tower = ClipVisual.load(model.files(ModelType.VISUAL, half=half), OnnxRuntimeEngine())
    for picture in pictures():
        expected = model.original.encode_image(transform(picture)[None]).numpy()
        found = tower.embed(picture)
        assert found.shape == (CHINESE_CLIP_DIMENSIONS[model.name],)
        assert found.dtype == np.float32
        assert cosines(expected, found[None]).min() >= bar(half), picture.size
        assert abs(np.linalg.norm(found) - 1) < 1e-5


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_a_query_has_the_original_embedding(model: Converted, half: bool) -> None:
    package = chinese_clip()
    tower = ClipTextual.load(model.files(ModelType.TEXTUAL, half=half), OnnxRuntimeEngine())
    for text in TEXTS:
        expected = model.original.encode_text(package.tokenize([text])).numpy()
        found = tower.embed(text)
        assert cosines(expected, found[None]).min() >= bar(half), text
        assert abs(np.linalg.norm(found) - 1) < 1e-5
        assert np.array_equal(tower.embed(text, "zh-CN"), found), "a language makes no difference"


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize("batch", [1, 5])
def test_batches_have_the_original_embeddings(model: Converted, batch: int, half: bool) -> None:
    package, torch = chinese_clip(), oracle("torch")
    size = architecture(model.name).image_size
    images = np.random.default_rng(batch).normal(size=(batch, 3, size, size)).astype(np.float32)
    expected = model.original.encode_image(torch.from_numpy(images)).numpy()
    (found,) = model.session(ModelType.VISUAL, half=half).run({"image": images})
    assert cosines(expected, found).min() >= bar(half)

    tokens = package.tokenize(TEXTS[-batch:])
    expected = model.original.encode_text(tokens).numpy()
    (found,) = model.session(ModelType.TEXTUAL, half=half).run({"text": tokens.numpy().astype(np.int32)})
    assert cosines(expected, found).min() >= bar(half)


def test_padding_makes_no_difference(model: Converted) -> None:
    tokens = chinese_clip().tokenize(["雪地里奔跑的狗"]).numpy().astype(np.int32)
    session = model.session(ModelType.TEXTUAL)
    (padded,) = session.run({"text": tokens})
    (short,) = session.run({"text": tokens[:, : int((tokens != 0).sum())]})
    assert cosines(padded, short).min() >= 0.999999


def test_a_half_precision_checkpoint_is_read(model: Converted, tmp_path: Path) -> None:
    """Training with `--precision fp16` leaves such ones."""
    save_checkpoint(model.original, tmp_path / "half.pt", half=True)
    convert(tmp_path / "half.pt", model.name, tmp_path / "model")
    images = np.random.default_rng(0).normal(size=(1, 3, *[architecture(model.name).image_size] * 2)).astype(np.float32)
    (found,) = OnnxRuntimeEngine().load(tmp_path / "model/visual/model.onnx").run({"image": images})
    (expected,) = model.session(ModelType.VISUAL).run({"image": images})
    assert cosines(expected, found).min() >= bar(half=True)


# ---------------------------------------------------------------- the files


def test_weights_beside_the_graph_are_the_same(model: Converted, tmp_path: Path) -> None:
    """As above 1.5 GB, which `make bench-clip` makes and a test cannot."""
    with open_checkpoint(model.checkpoint) as opened:
        graph = image_tower(Weights(opened, model.checkpoint, model.name), architecture(model.name), half=False)
        counts: list[int] = []
        graph.save(tmp_path / "model.onnx", counts.append, external_above=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert 0 < graph.size() - sum(counts) < graph.size() / 20, "all is told but for small tensors inside the graph"
    assert (tmp_path / "model.onnx").stat().st_size < 100_000
    images = np.random.default_rng(0).normal(size=(1, 3, *[architecture(model.name).image_size] * 2)).astype(np.float32)
    (found,) = OnnxRuntimeEngine().load(tmp_path / "model.onnx").run({"image": images})
    (expected,) = model.session(ModelType.VISUAL).run({"image": images})
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("kind", [ModelType.VISUAL, ModelType.TEXTUAL])
def test_onnx_finds_nothing_wrong_with_a_graph(model: Converted, kind: ModelType) -> None:
    loaded = onnx.load(model.files(kind).graph)
    onnx.checker.check_model(loaded, full_check=True)
    axes = [axis.dim_param or axis.dim_value for axis in loaded.graph.input[0].type.tensor_type.shape.dim]
    assert axes[0] == "batch"


# ---------------------------------------------------------------- what optimisers make of them


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_the_transformer_optimiser_fuses_every_layer(model: Converted, half: bool) -> None:
    optimizer = oracle("onnxruntime.transformers.optimizer")
    kinds = {ModelType.TEXTUAL: "bert"}
    if model.name != "cn-clip_RN50":
        kinds[ModelType.VISUAL] = "vit"
    for kind, family in kinds.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fused = optimizer.optimize_model(str(model.files(kind, half=half).graph), model_type=family, opt_level=0)
        counts = collections.Counter(node.op_type for node in fused.model.graph.node)
        assert counts["Attention"] == LAYERS
        assert counts["Softmax"] == 0
        assert counts["BiasGelu"] + counts["QuickGelu"] == LAYERS
        assert counts["SkipLayerNormalization"] >= 2 * LAYERS - 1


def test_openvino_fuses_every_layer(model: Converted) -> None:
    openvino = oracle("openvino")
    for kind in (ModelType.VISUAL, ModelType.TEXTUAL):
        compiled = openvino.Core().compile_model(str(model.files(kind).graph), "CPU")
        layers = [op.get_rt_info()["layerType"].astype(str) for op in compiled.get_runtime_model().get_ordered_ops()]
        counts = collections.Counter(layers)
        attentions = 1 if (model.name, kind) == ("cn-clip_RN50", ModelType.VISUAL) else LAYERS
        fused = counts["Subgraph"] + counts["ScaledDotProductAttention"] + counts["MHA"]
        assert fused >= attentions, counts
        assert counts["Softmax"] + counts["MatMul"] + counts["Erf"] == 0, counts


# ---------------------------------------------------------------- what is no such checkpoint


def test_the_checkpoint_of_another_size_is_refused(model: Converted, tmp_path: Path) -> None:
    for name in set(NAMES) - {model.name}:
        with pytest.raises(CheckpointError, match=f"is not the checkpoint of {name} "):
            convert(model.checkpoint, name, tmp_path / name)


@pytest.mark.parametrize(
    ("layer", "left"),
    [("bert.encoder.layer.0", "1"), ("visual.transformer.resblocks.0", "1"), ("bert.encoder", "none")],
)
def test_a_checkpoint_without_a_layer_is_refused(layer: str, left: str, tmp_path: Path) -> None:
    torch = oracle("torch")
    state = original("cn-clip_ViT-B-16").state_dict()
    kept = {f"module.{key}": tensor for key, tensor in state.items() if not key.startswith(f"{layer}.")}
    torch.save({"state_dict": kept}, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=rf"its layers [\w.]+ are {left}\)"):
        convert(tmp_path / "checkpoint.pt", "cn-clip_ViT-B-16", tmp_path / "model")


def changed(change: Callable[[dict[str, Any]], None], path: Path) -> Path:
    """Write the checkpoint of a small model in which something is changed."""
    state = dict(original(BASE).state_dict())
    change(state)
    oracle("torch").save({"state_dict": state}, path)
    return path


def set_item(name: str, make: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        state[name] = make(state[name])

    return change


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (set_item("bert.embeddings.word_embeddings.weight", lambda old: old[:100].clone()), "vocabulary is 100 words"),
        (set_item("text_projection", lambda old: old * float("nan")), "text_projection has numbers that are none"),
        (set_item("visual.proj", lambda old: old / 0), "visual.proj has numbers that are none"),
        (set_item("visual.proj", lambda old: old.double() * 1e300), "visual.proj has numbers that are none"),
        (set_item("visual.proj", lambda old: old.long()), "visual.proj has int64 and no fractions"),
        (set_item("visual.ln_post.bias", lambda old: old[:-1].clone()), "visual.ln_post.bias is"),
    ],
)
def test_weights_that_cannot_be_are_refused(
    change: Callable[[dict[str, Any]], None], cause: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as caught:
        convert(changed(change, tmp_path / "odd.pt"), BASE, tmp_path / "model")
    assert cause in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "odd.pt"))
    assert "\n" not in str(caught.value)


def test_a_small_file_does_not_become_a_large_model(tmp_path: Path) -> None:
    """All its layers are one in the file."""

    def repeat(state: dict[str, Any]) -> None:
        for key in [key for key in state if key.startswith("bert.encoder.layer.0.")]:
            for layer in range(2, 300):
                state[key.replace(".0.", f".{layer}.", 1)] = state[key]

    large = changed(repeat, tmp_path / "large.pt")
    assert large.stat().st_size < 25e6
    with pytest.raises(CheckpointError, match="describes more numbers than it holds"):
        convert(large, BASE, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("name", ["cn-clip_RN50", BASE])
def test_a_width_that_its_heads_do_not_divide_is_refused(name: str, tmp_path: Path) -> None:
    source = original(name)
    part = "attnpool.positional_embedding" if name == "cn-clip_RN50" else "conv1.weight"
    state = dict(source.state_dict())
    state[f"visual.{part}"] = state[f"visual.{part}"].repeat_interleave(2, -1 if "attn" in part else 0)
    state[f"visual.{part}"] = state[f"visual.{part}"].narrow(-1 if "attn" in part else 0, 0, 100).clone()
    oracle("torch").save({"state_dict": state}, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match="100"):
        convert(tmp_path / "odd.pt", name, tmp_path / "model")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(CheckpointError, match="no regular file"):
        convert(tmp_path / "pipe.pt", BASE, tmp_path / "model")


def test_a_disk_that_does_not_give_the_file_is_not_taken_for_the_other(
    model: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("immich_ml_compat.chinese_clip.containers.File.readinto", fail)
    with pytest.raises(CheckpointError, match="cannot be read \\(Input/output error\\)"):
        convert(model.checkpoint, model.name, tmp_path / "model")


def test_what_will_be_written_is_told_before_it_is(model: Converted, tmp_path: Path) -> None:
    told: list[int] = []
    written: list[int] = []

    def begin(size: int) -> None:
        assert not (tmp_path / "model").exists()
        told.append(size)

    convert(model.checkpoint, model.name, tmp_path / "model", begin=begin, progress=written.append)
    assert told == [sum(written)]
    graphs = sum(path.stat().st_size for path in (tmp_path / "model").rglob("*.onnx"))
    assert told[0] <= graphs <= told[0] + 200_000


def test_numbers_beyond_float16_are_refused(tmp_path: Path) -> None:
    torch = oracle("torch")
    source = original("cn-clip_ViT-B-16")
    with torch.no_grad():
        source.visual.proj[3, 5] = 70_000.0
    save_checkpoint(source, tmp_path / "large.pt")
    convert(tmp_path / "large.pt", "cn-clip_ViT-B-16", tmp_path / "single")
    with pytest.raises(CheckpointError, match=r"large\.pt: visual\.proj has numbers that do not fit into float16"):
        convert(tmp_path / "large.pt", "cn-clip_ViT-B-16", tmp_path / "half", half=True)


# ---------------------------------------------------------------- in full size


_CONVERT = """
import sys
from pathlib import Path
from immich_ml_compat.chinese_clip.conversion import convert
convert(Path(sys.argv[2]), sys.argv[1], Path(sys.argv[3]))
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(status["VmHWM"].split()[0])
"""


def convert_elsewhere(name: str, checkpoint: Path, folder: Path) -> int:
    """Convert in a process of its own, and return the most bytes of memory it had."""
    command = [sys.executable, "-c", _CONVERT, name, str(checkpoint), str(folder)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) * 1024


def test_the_largest_tensors_are_converted_in_little_memory(tmp_path: Path) -> None:
    """ViT-H-14's in their full width; how many layers there are makes no difference, as each is read by itself."""
    name = "cn-clip_ViT-H-14"
    source = original(name, small=False, layers=2)
    save_checkpoint(source, tmp_path / "checkpoint.pt")
    largest = max(tensor.nbytes for tensor in source.state_dict().values())
    assert largest == 21128 * 1024 * 4
    assert convert_elsewhere(name, tmp_path / "checkpoint.pt", tmp_path / "model") <= (1 << 30) + largest


def test_a_full_size_model_is_converted_in_little_memory(tmp_path: Path) -> None:
    name = "cn-clip_ViT-B-16"
    package = chinese_clip()
    source = original(name, small=False)
    save_checkpoint(source, tmp_path / "checkpoint.pt")
    folder = tmp_path / "cache/clip" / name
    largest = max(tensor.nbytes for tensor in source.state_dict().values())
    assert convert_elsewhere(name, tmp_path / "checkpoint.pt", folder) <= (1 << 30) + largest
    assert sum(path.stat().st_size for path in folder.rglob("*.onnx")) > 700e6

    store, picture, text = ModelStore(tmp_path / "cache"), pictures()[2], TEXTS[3]
    transform = package.image_transform(architecture(name).image_size)
    files = {kind: store.find(ModelKey(Task.CLIP, name, kind)) for kind in (ModelType.VISUAL, ModelType.TEXTUAL)}
    visual, textual = files[ModelType.VISUAL], files[ModelType.TEXTUAL]
    assert visual is not None
    assert textual is not None
    image = ClipVisual.load(visual, OnnxRuntimeEngine()).embed(picture)
    assert cosines(source.encode_image(transform(picture)[None]).numpy(), image[None]).min() >= bar(half=False)
    query = ClipTextual.load(textual, OnnxRuntimeEngine()).embed(text)
    assert cosines(source.encode_text(package.tokenize([text])).numpy(), query[None]).min() >= bar(half=False)
