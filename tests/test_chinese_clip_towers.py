"""Chinese-CLIP's photos are prepared as the original does, and graphs of its own exporter run as they are."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto
from PIL import Image
from tokenizers import Tokenizer

from immich_ml_compat.catalog import CHINESE_CLIP_DIMENSIONS, ModelType, Task
from immich_ml_compat.chinese_clip.architectures import architecture
from immich_ml_compat.chinese_clip.configuration import small_file, small_files
from immich_ml_compat.clip.embeddings import run_tower
from immich_ml_compat.clip.textual import ClipTextual, Tokenization
from immich_ml_compat.clip.visual import ClipVisual, Preprocessing
from immich_ml_compat.engine import Array, OneByOne, TensorInfo
from immich_ml_compat.engine.onnxruntime import OnnxRuntimeEngine
from immich_ml_compat.errors import ModelOutputError
from immich_ml_compat.store import ModelFiles, ModelKey, ModelStore

from .clip_models import write_clip_model
from .clip_models.graph import Graph
from .oracles import chinese_clip
from .ready_made_towers import Towers, write_ready_made
from .server import running_server

NAME = "cn-clip_ViT-B-16"
ENGINE = OnnxRuntimeEngine()
TEXTS = ["一只狗在海边", "a dog on the beach", "", "狗" * 300]


def files(cache: Path, name: str, kind: ModelType) -> ModelFiles:
    found = ModelStore(cache).find(ModelKey(Task.CLIP, name, kind))
    assert found is not None
    return found


def photo(width: int, height: int) -> Image.Image:
    """Noise over a gradient: any wrong pixel shows."""
    noise = np.random.default_rng(width * height).integers(0, 128, (height, width, 3))
    return Image.fromarray((noise + np.linspace(0, 127, width)[None, :, None]).astype(np.uint8))


def preprocessing(name: str) -> Preprocessing:
    return Preprocessing.read(json.loads(small_file(name, "visual/preprocess_cfg.json")))


def original_tensor(image: Image.Image, side: int) -> NDArray[np.float32]:
    tensor: NDArray[np.float32] = chinese_clip().image_transform(side)(image).numpy()
    return tensor


def original_ids(text: str) -> list[int]:
    ids: list[int] = chinese_clip().tokenize(text)[0].tolist()
    return ids


# ---------------------------------------------------------------- photos

SIZES = [(640, 480), (480, 640), (224, 224), (223, 225), (37, 1013), (1, 1), (2, 1), (1, 999), (3000, 1), (4000, 9)]


@pytest.mark.parametrize("name", CHINESE_CLIP_DIMENSIONS)
@pytest.mark.parametrize("size", SIZES)
def test_a_photo_becomes_the_originals_tensor(name: str, size: tuple[int, int]) -> None:
    tensor = preprocessing(name)(photo(*size))
    assert tensor.dtype == np.float32
    np.testing.assert_array_equal(tensor[0], original_tensor(photo(*size), architecture(name).image_size))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700))
def test_a_photo_of_any_size_becomes_the_originals_tensor(width: int, height: int) -> None:
    tensor = preprocessing(NAME)(photo(width, height))
    np.testing.assert_array_equal(tensor[0], original_tensor(photo(width, height), 224))


def test_every_value_of_a_pixel_is_normalised_as_the_original_does() -> None:
    values = np.resize(np.arange(256, dtype=np.uint8), (224, 224, 3))
    image = Image.fromarray(values)
    np.testing.assert_array_equal(preprocessing(NAME)(image)[0], original_tensor(image, 224))


def test_only_the_crop_says_whether_a_photo_is_squashed() -> None:
    siglip = {"size": [224, 224], "resize_mode": "squash"}
    assert Preprocessing.read(siglip).crop
    assert Preprocessing.read(siglip | {"do_center_crop": True}).crop
    assert not Preprocessing.read({"size": 224, "do_center_crop": False}).crop


# ---------------------------------------------------------------- ready-made towers


@pytest.mark.parametrize("name", CHINESE_CLIP_DIMENSIONS)
def test_the_graphs_alone_are_a_model(tmp_path: Path, name: str) -> None:
    towers = Towers.random(name)
    write_ready_made(tmp_path, name, towers)
    image = photo(500, 340)
    require_embedding(
        ClipVisual.load(files(tmp_path, name, ModelType.VISUAL), ENGINE).embed(image),
        towers.image_features(original_tensor(image, architecture(name).image_size)),
        name,
    )
    tower = ClipTextual.load(files(tmp_path, name, ModelType.TEXTUAL), ENGINE)
    for text in TEXTS:
        require_embedding(tower.embed(text, "zh-CN"), towers.text_features(original_ids(text)), name)


def require_embedding(embedding: NDArray[np.float32], expected: NDArray[np.float64], name: str) -> None:
    assert embedding.dtype == np.float32
    assert embedding.shape == (CHINESE_CLIP_DIMENSIONS[name],)
    np.testing.assert_allclose(embedding, expected, atol=1e-5)


def test_weights_beside_the_graphs_keep_their_names(tmp_path: Path) -> None:
    towers = Towers.random(NAME)
    extra = ("vit-b-16.img.fp16.onnx.extra_file", "vit-b-16.txt.fp16.onnx.extra_file")
    folder = write_ready_made(tmp_path, NAME, towers, extra)
    assert (folder / "textual" / extra[1]).stat().st_size > 10 * (folder / "textual/model.onnx").stat().st_size
    image = photo(300, 200)
    embedding = ClipVisual.load(files(tmp_path, NAME, ModelType.VISUAL), ENGINE).embed(image)
    require_embedding(embedding, towers.image_features(original_tensor(image, 224)), NAME)
    embedding = ClipTextual.load(files(tmp_path, NAME, ModelType.TEXTUAL), ENGINE).embed("一只狗")
    require_embedding(embedding, towers.text_features(original_ids("一只狗")), NAME)


def test_a_tower_of_another_size_is_refused(tmp_path: Path) -> None:
    folder = write_ready_made(tmp_path, NAME, Towers.random(NAME))
    onnx.save_model(Towers.random(NAME).image_model(336), folder / "visual/model.onnx")
    with pytest.raises(ValueError, match="336 pixels"):
        ClipVisual.load(files(tmp_path, NAME, ModelType.VISUAL), ENGINE)


@pytest.mark.parametrize(("name", "other"), [("cn-clip_ViT-B-16", "cn-clip_ViT-L-14"), ("cn-clip_RN50", NAME)])
def test_towers_of_another_dimension_are_refused(name: str, other: str, tmp_path: Path) -> None:
    """Immich could store none of their vectors."""
    write_ready_made(tmp_path, other, Towers.random(other))
    (tmp_path / "clip" / other).rename(tmp_path / "clip" / name)
    message = f"gives {CHINESE_CLIP_DIMENSIONS[other]} numbers, {name} has {CHINESE_CLIP_DIMENSIONS[name]}"
    with pytest.raises(ValueError, match=message):
        ClipVisual.load(files(tmp_path, name, ModelType.VISUAL), ENGINE)
    with pytest.raises(ValueError, match=message):
        ClipTextual.load(files(tmp_path, name, ModelType.TEXTUAL), ENGINE)


def test_files_on_disk_win(tmp_path: Path) -> None:
    folder = write_ready_made(tmp_path, NAME, Towers.random(NAME))
    for path, content in small_files(NAME).items():
        (folder / path).write_bytes(content)
    (folder / "visual/preprocess_cfg.json").write_text(json.dumps({"size": 64}))
    with pytest.raises(ValueError, match="says 64"):
        ClipVisual.load(files(tmp_path, NAME, ModelType.VISUAL), ENGINE)
    (folder / "textual/tokenizer_config.json").write_text(json.dumps({"pad_token": "nothing"}))
    with pytest.raises(ValueError, match="nothing"):
        ClipTextual.load(files(tmp_path, NAME, ModelType.TEXTUAL), ENGINE)


def test_another_model_needs_its_files(tmp_path: Path) -> None:
    name = "ViT-B-32__openai"
    write_clip_model(tmp_path, name)
    (tmp_path / "clip" / name / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        ClipTextual.load(files(tmp_path, name, ModelType.TEXTUAL), ENGINE)
    assert small_files(name) == {}


def test_only_graphs_can_be_missing(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    assert store.missing(Task.CLIP, NAME) == ["visual/model.onnx", "textual/model.onnx"]
    folder = write_ready_made(tmp_path, NAME, Towers.random(NAME))
    assert store.missing(Task.CLIP, NAME) == []
    (folder / "textual/model.onnx").unlink()
    assert store.missing(Task.CLIP, NAME) == ["textual/model.onnx"]
    assert "config.json" in store.missing(Task.CLIP, "ViT-B-16__openai")


# ---------------------------------------------------------------- padding and normalising


def first_token_and_count(tmp_path: Path, *, bert: bool) -> NDArray[np.float32]:
    """What a graph of any length that gives its first id and the number of ids got for a short text."""
    graph = Graph(seed=0)
    text = graph.op("Cast", graph.input("text", TensorProto.INT64, 52), to=TensorProto.FLOAT)
    first = graph.op("Slice", text, graph.integers(0), graph.integers(1), graph.integers(1))
    ones = graph.op("Pow", graph.op("Exp", graph.op("Mul", text, graph.number(0))), graph.number(1))
    count = graph.op("ReduceSum", ones, graph.integers(1), keepdims=1)
    dimension = CHINESE_CLIP_DIMENSIONS[NAME]
    numbers = graph.op("Pad", graph.op("Concat", first, count, axis=1), graph.integers(0, 0, 0, dimension - 2))
    graph.output(numbers, "embedding", dimension)
    model = graph.model()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "sequence"
    folder = tmp_path / "clip" / NAME / "textual"
    folder.mkdir(parents=True)
    onnx.save_model(model, folder / "model.onnx")
    config = json.loads(small_file(NAME, "config.json"))
    if not bert:
        del config["text_cfg"]["tokenizer_kwargs"]
    tokenizer = Tokenizer.from_buffer(small_file(NAME, "textual/tokenizer.json"))
    tokenizer.enable_padding(length=60)  # as a file may say
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder.parent / "config.json").write_text(json.dumps(config))
    return ClipTextual.load(files(tmp_path, NAME, ModelType.TEXTUAL), ENGINE).embed("一只狗")[:2]


def test_a_graph_of_any_length_is_given_no_padding(tmp_path: Path) -> None:
    assert first_token_and_count(tmp_path, bert=True).tolist() == [101, 5]


def test_another_familys_graph_of_any_length_is(tmp_path: Path) -> None:
    assert first_token_and_count(tmp_path, bert=False).tolist() == [101, 52]
    name = "LABSE-Vit-L-14"
    write_clip_model(tmp_path, name)
    tower = files(tmp_path, name, ModelType.TEXTUAL)
    assert Tokenization.read(tower, any_length=True)("a dog", None) == Tokenization.read(tower)("a dog", None)


class Gives(OneByOne):
    """A session that gives what it was told to."""

    inputs: Sequence[TensorInfo] = ()
    execution_provider: str = "fake"
    metadata: Mapping[str, str] = {}

    def __init__(self, name: str, output: list[float], dtype: Any) -> None:
        self._output = np.array([output], dtype)
        self.outputs: Sequence[TensorInfo] = [TensorInfo(name, np.dtype(dtype), self._output.shape)]

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        return [self._output]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e4])
def test_features_are_normalised(dtype: Any, scale: float) -> None:
    embedding = run_tower(Gives("unnorm_image_features", [3 * scale, 4 * scale], dtype), {}, NAME)
    assert embedding.dtype == np.float32
    np.testing.assert_allclose(embedding, [0.6, 0.8], rtol=0.1 if (dtype, scale) == (np.float16, 1e-7) else 1e-3)
    np.testing.assert_allclose(np.linalg.norm(embedding), 1, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e30, 3e37])
def test_no_length_is_too_small_or_too_large(scale: float) -> None:
    embedding = run_tower(Gives("unnorm_text_features", [scale] * 4, np.float32), {}, NAME)
    np.testing.assert_allclose(embedding, 0.5, rtol=1e-6)


def test_embeddings_are_left_as_they_are() -> None:
    assert run_tower(Gives("embedding", [3, 4], np.float32), {}, NAME).tolist() == [3, 4]


@pytest.mark.parametrize("features", [[0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_what_has_no_direction_is_never_sent(features: list[float]) -> None:
    with pytest.raises(ModelOutputError, match=NAME):
        run_tower(Gives("unnorm_text_features", features, np.float32), {}, NAME)


# ---------------------------------------------------------------- the whole way


def test_a_server_answers_with_ready_made_towers(tmp_path: Path) -> None:
    towers = Towers.random(NAME, seed=1)
    write_ready_made(tmp_path / "cache", NAME, towers)
    image = photo(320, 200)
    png = io.BytesIO()
    image.save(png, "PNG")
    with running_server(tmp_path / "cache", tmp_path) as server:
        visual = server.predict({"clip": {"visual": {"modelName": NAME}}}, image=png.getvalue())
        options = {"language": "zh-CN"}
        textual = server.predict({"clip": {"textual": {"modelName": NAME, "options": options}}}, text="一只“狗”")
    assert (visual.status_code, textual.status_code) == (200, 200), (visual.text, textual.text)
    embeddings = [np.array(json.loads(answer.json()["clip"]), np.float32) for answer in (visual, textual)]
    require_embedding(embeddings[0], towers.image_features(original_tensor(image, 224)), NAME)
    require_embedding(embeddings[1], towers.text_features(original_ids('一只"狗"')), NAME)
