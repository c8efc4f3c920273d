"""Smart search: pre-processing against the stock server's formula, every family against plain numpy."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from immich_ml_compat.catalog import IMMICH_CLIP_DIMENSIONS, ModelType, Task
from immich_ml_compat.clip.languages import ENGLISH, flores_code
from immich_ml_compat.clip.textual import ClipTextual, Tokenization
from immich_ml_compat.clip.visual import ClipVisual, Preprocessing, centre_box
from immich_ml_compat.engine import Array, OneByOne, TensorInfo
from immich_ml_compat.engine.onnxruntime import OnnxRuntimeEngine
from immich_ml_compat.errors import ModelOutputError
from immich_ml_compat.store import ModelFiles, ModelKey, ModelStore

from .clip_models import model_spec, write_clip_model
from .clip_models.reference import Reference
from .clip_models.vocabulary import FLORES_200

ENGINE = OnnxRuntimeEngine()
FAMILIES = [
    "ViT-B-32__openai",
    "ViT-B-32__laion2b-s34b-b79k",
    "RN50__openai",
    "ViT-B-16-SigLIP__webli",
    "ViT-B-32-SigLIP2-256__webli",
    "nllb-clip-base-siglip__mrl",
    "XLM-Roberta-Base-ViT-B-32__laion5b_s13b_b90k",
    "XLM-Roberta-Large-Vit-B-32",
    "LABSE-Vit-L-14",
]


def files(folder: Path, name: str, kind: ModelType) -> ModelFiles:
    found = ModelStore(folder).find(ModelKey(Task.CLIP, name, kind))
    assert found is not None
    return found


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise over a gradient: any wrong pixel shows."""
    noise = np.random.default_rng(seed).integers(0, 128, (height, width, 3))
    gradient = np.linspace(0, 127, width)[None, :, None]
    return Image.fromarray((noise + gradient).astype(np.uint8))


def stock_preprocessing(
    image: Image.Image, size: int, mean: Sequence[float], std: Sequence[float]
) -> NDArray[np.float32]:
    """The stock server's steps, one by one, on the whole picture (contract, section 4).

    Columns before rows, as Pillow did it at all times until 12; 13 chooses, and then clips elsewhere.
    """
    if image.width < image.height:
        scaled = size, int((image.height / image.width) * size)
    else:
        scaled = int((image.width / image.height) * size), size
    columns = image.resize((scaled[0], image.height), Image.Resampling.BICUBIC)
    whole = columns.resize(scaled, Image.Resampling.BICUBIC)
    left, top = int(whole.width / 2 - size / 2), int(whole.height / 2 - size / 2)
    pixels = np.asarray(whole.crop((left, top, left + size, top + size)), np.float32) / 255
    normalised = (pixels - np.array(mean)) / np.array(std)
    tensor: NDArray[np.float32] = normalised.transpose(2, 0, 1)[None].astype(np.float32)
    return tensor


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 900), height=st.integers(1, 900), size=st.sampled_from([32, 224, 240, 378]))
def test_preprocessing_equals_the_stock_servers(width: int, height: int, size: int) -> None:
    image = photo(width, height)
    preprocess = Preprocessing(size=size)
    difference = np.abs(preprocess(image) - stock_preprocessing(image, size, preprocess.mean, preprocess.std))
    # Two grey levels at the most, in few places: positions are rounded to float32 inside Pillow.
    assert difference.max() <= 2.01 / 255 / min(preprocess.std)
    assert (difference > 1e-5).mean() < 0.01


@given(width=st.integers(1, 2**27), height=st.integers(1, 2**27), size=st.integers(1, 1024))
def test_the_part_that_is_cropped_lies_in_the_picture_and_is_its_middle(width: int, height: int, size: int) -> None:
    left, top, right, bottom = centre_box(width, height, size)
    assert 0 <= left < right <= width * (1 + 1e-9)
    assert 0 <= top < bottom <= height * (1 + 1e-9)
    assert (left + right) / 2 == pytest.approx(width / 2, abs=width / size + 1)
    assert (top + bottom) / 2 == pytest.approx(height / 2, abs=height / size + 1)


def test_preprocessing_reads_open_clips_configuration() -> None:
    assert Preprocessing.read({"size": [256, 256]}).size == 256
    configured = Preprocessing.read({"size": 384, "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear"})
    assert configured == Preprocessing(384, (0.5,) * 3, (0.25,) * 3, Image.Resampling.BILINEAR)
    grey = Image.new("RGB", (400, 300), (128, 128, 128))
    assert configured(grey) == pytest.approx((128 / 255 - 0.5) / 0.25, abs=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_image_towers_agree_with_plain_numpy(tmp_path: Path, name: str) -> None:
    write_clip_model(tmp_path, name, seed=1)
    tower = files(tmp_path, name, ModelType.VISUAL)
    config = json.loads(tower.beside("preprocess_cfg.json").read_bytes())
    image = photo(500, 340)
    tensor = stock_preprocessing(image, config["size"][0], config["mean"], config["std"])
    expected = Reference(tower.graph).encode_image(model_spec(name), tensor[0])
    embedding = ClipVisual.load(tower, ENGINE).embed(image)
    assert embedding.dtype == np.float32
    assert embedding.shape == (IMMICH_CLIP_DIMENSIONS[name],)
    assert float(embedding @ expected) > 0.99999
    assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("text", ["a dog on the beach", " 海边的  日落\n", "x" * 3000])
def test_text_towers_agree_with_plain_numpy(tmp_path: Path, name: str, text: str) -> None:
    write_clip_model(tmp_path, name, seed=1)
    tower = files(tmp_path, name, ModelType.TEXTUAL)
    spec = model_spec(name)
    ids, mask = Tokenization.read(tower)(text, None)
    assert len(ids) == len(mask) == spec.text.context_length
    expected = Reference(tower.graph).encode_text(
        spec, np.array(ids, np.int32), np.array(mask, np.int32) if spec.text.mask_input else None
    )
    embedding = ClipTextual.load(tower, ENGINE).embed(text)
    assert embedding.dtype == np.float32
    assert embedding.shape == (IMMICH_CLIP_DIMENSIONS[name],)
    assert float(embedding @ expected) > 0.99999


@pytest.mark.parametrize("name", sorted(IMMICH_CLIP_DIMENSIONS))
def test_every_name_of_immich_loads_and_gives_its_dimension(tmp_path: Path, name: str) -> None:
    write_clip_model(tmp_path, name)
    image = ClipVisual.load(files(tmp_path, name, ModelType.VISUAL), ENGINE).embed(photo(300, 200))
    text = ClipTextual.load(files(tmp_path, name, ModelType.TEXTUAL), ENGINE).embed("a dog", "de")
    assert len(image) == len(text) == IMMICH_CLIP_DIMENSIONS[name]


def test_weights_beside_the_graph_are_loaded(tmp_path: Path) -> None:
    name = "ViT-B-32__openai"
    write_clip_model(tmp_path / "one", name, seed=3)
    write_clip_model(tmp_path / "two", name, seed=3, external_data=True)
    inside, beside = (
        ClipVisual.load(files(tmp_path / folder, name, ModelType.VISUAL), ENGINE).embed(photo(300, 200))
        for folder in ("one", "two")
    )
    assert files(tmp_path / "two", name, ModelType.VISUAL).graph.stat().st_size < 200_000
    np.testing.assert_array_equal(inside, beside)


def test_white_space_does_not_count(tmp_path: Path) -> None:
    write_clip_model(tmp_path, "ViT-B-32__openai")
    tokenize = Tokenization.read(files(tmp_path, "ViT-B-32__openai", ModelType.TEXTUAL))
    assert tokenize("  a\tdog \n", None) == tokenize("a dog", None) != tokenize("adog", None)


def test_siglip_takes_canonical_text(tmp_path: Path) -> None:
    name = "ViT-B-16-SigLIP__webli"
    write_clip_model(tmp_path, name)
    tokenize = Tokenization.read(files(tmp_path, name, ModelType.TEXTUAL))
    assert tokenize("A Dog, (running)!", None) == tokenize("a dog running", None)


def test_nllb_is_told_the_language(tmp_path: Path) -> None:
    name = "nllb-clip-base-siglip__mrl"
    write_clip_model(tmp_path, name)
    tokenize = Tokenization.read(files(tmp_path, name, ModelType.TEXTUAL))
    vocabulary = tokenize.tokenizer
    for language, code in [("zh-CN", "zho_Hans"), ("zh-TW", "zho_Hant"), ("de", "deu_Latn"), ("xx-YY", "eng_Latn")]:
        ids, _ = tokenize("hund", language)
        assert vocabulary.token_to_id(code) in ids, language
    assert tokenize("hund", "de") != tokenize("hund", None)


def test_other_models_are_not(tmp_path: Path) -> None:
    write_clip_model(tmp_path, "ViT-B-32__openai")
    tokenize = Tokenization.read(files(tmp_path, "ViT-B-32__openai", ModelType.TEXTUAL))
    assert tokenize("dog", "de") == tokenize("dog", None)


# The languages of Immich's own interface.
INTERFACE_LANGUAGES = """
    ar bg ca cs da de el en es et fa fi fr he hi hr hu id it ja ko lt lv mn ms nb-NO nl pl pt pt-BR ro ru
    sk sl sr-Cyrl sr-Latn sv ta te th tr uk ur vi zh-CN zh-Hans zh-Hant zh-TW zh-SIMPLIFIED
"""


@pytest.mark.parametrize("language", INTERFACE_LANGUAGES.split())
def test_the_interface_languages_have_codes_that_nllb_knows(language: str) -> None:
    code = flores_code(language)
    assert code in FLORES_200
    assert (code == ENGLISH) == (language == "en")


@given(st.text())
def test_any_language_tag_has_a_code(language: str) -> None:
    assert flores_code(language) in FLORES_200


class OneOutput(OneByOne):
    """A session that gives what it was told to."""

    inputs: Sequence[TensorInfo] = [TensorInfo("image", np.dtype(np.float32), (1, 3, 32, 32))]
    outputs: Sequence[TensorInfo] = [TensorInfo("embedding", np.dtype(np.float16), (1, 2))]
    execution_provider: str = "fake"
    metadata: Mapping[str, str] = {}

    def __init__(self, output: Array) -> None:
        self._output = output

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        assert inputs["image"].shape == (1, 3, 32, 32)
        return [self._output]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_sent(value: float) -> None:
    tower = ClipVisual("half", OneOutput(np.array([[1.0, value]], np.float16)), Preprocessing(32))
    with pytest.raises(ModelOutputError, match="half"):
        tower.embed(photo(64, 64))
