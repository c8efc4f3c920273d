"""The CLIP models that tests build: they load, answer as their architectures must, lie on disk as the stock ones do."""

import functools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tests.clip_models import STOCK_NAMES, ModelSpec, model_spec, write_clip_model
from tests.clip_models.reference import Reference

FAMILIES = (
    "ViT-B-32__openai",
    "ViT-B-32__laion2b_e16",
    "RN50__openai",
    "ViT-B-16-SigLIP__webli",
    "ViT-B-32-SigLIP2-256__webli",
    "nllb-clip-base-siglip__mrl",
    "XLM-Roberta-Base-ViT-B-32__laion5b_s13b_b90k",
    "XLM-Roberta-Large-Vit-B-32",
    "LABSE-Vit-L-14",
)
MULTILINGUAL = FAMILIES[4:]

# The Immich server's table: the width of its vector column for each model.
DIMENSIONS = {
    512: """RN101__openai RN101__yfcc15m ViT-B-16__laion400m_e31 ViT-B-16__laion400m_e32 ViT-B-16__openai
        ViT-B-32__laion2b-s34b-b79k ViT-B-32__laion2b_e16 ViT-B-32__laion400m_e31 ViT-B-32__laion400m_e32
        ViT-B-32__openai XLM-Roberta-Base-ViT-B-32__laion5b_s13b_b90k XLM-Roberta-Large-Vit-B-32""",
    640: """RN50x4__openai ViT-B-16-plus-240__laion400m_e31 ViT-B-16-plus-240__laion400m_e32
        XLM-Roberta-Large-Vit-B-16Plus""",
    768: """LABSE-Vit-L-14 RN50x16__openai ViT-B-16-SigLIP-256__webli ViT-B-16-SigLIP-384__webli
        ViT-B-16-SigLIP-512__webli ViT-B-16-SigLIP-i18n-256__webli ViT-B-16-SigLIP2__webli ViT-B-16-SigLIP__webli
        ViT-B-32-SigLIP2-256__webli ViT-L-14-336__openai ViT-L-14-quickgelu__dfn2b ViT-L-14__laion2b-s32b-b82k
        ViT-L-14__laion400m_e31 ViT-L-14__laion400m_e32 ViT-L-14__openai XLM-Roberta-Large-Vit-L-14
        nllb-clip-base-siglip__mrl nllb-clip-base-siglip__v1""",
    1024: """RN50__cc12m RN50__openai RN50__yfcc15m RN50x64__openai ViT-H-14-378-quickgelu__dfn5b
        ViT-H-14-quickgelu__dfn5b ViT-H-14__laion2b-s32b-b79k ViT-L-16-SigLIP-256__webli ViT-L-16-SigLIP-384__webli
        ViT-L-16-SigLIP2-256__webli ViT-L-16-SigLIP2-384__webli ViT-L-16-SigLIP2-512__webli
        ViT-g-14__laion2b-s12b-b42k XLM-Roberta-Large-ViT-H-14__frozen_laion5b_s13b_b90k""",
    1152: """ViT-SO400M-14-SigLIP-384__webli ViT-SO400M-14-SigLIP2-378__webli ViT-SO400M-14-SigLIP2__webli
        ViT-SO400M-16-SigLIP2-256__webli ViT-SO400M-16-SigLIP2-384__webli ViT-SO400M-16-SigLIP2-512__webli
        nllb-clip-large-siglip__mrl nllb-clip-large-siglip__v1""",
    1536: "ViT-gopt-16-SigLIP2-256__webli ViT-gopt-16-SigLIP2-384__webli",
}


@dataclass
class Model:
    """A model folder, opened as the stock server opens it."""

    root: Path
    spec: ModelSpec

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        config = json.loads((self.root / "textual" / "tokenizer_config.json").read_text())
        model_config = json.loads((self.root / "config.json").read_text())
        length = model_config["text_cfg"].get("context_length", 77)
        tokenizer = Tokenizer.from_file(str(self.root / "textual" / "tokenizer.json"))
        pad_id = tokenizer.token_to_id(config["pad_token"])
        assert pad_id is not None
        tokenizer.enable_padding(length=length, pad_token=config["pad_token"], pad_id=pad_id)
        tokenizer.enable_truncation(max_length=length)
        return tokenizer

    @functools.cached_property
    def visual(self) -> ort.InferenceSession:
        return open_session(self.root / "visual" / "model.onnx")

    @functools.cached_property
    def textual(self) -> ort.InferenceSession:
        return open_session(self.root / "textual" / "model.onnx")

    def tokens(self, text: str) -> dict[str, NDArray[np.int32]]:
        encoding = self.tokenizer.encode(text)
        ids = np.array([encoding.ids], np.int32)
        if not self.spec.text.mask_input:
            return {"text": ids}
        return {"input_ids": ids, "attention_mask": np.array([encoding.attention_mask], np.int32)}

    def encode_text(self, text: str) -> NDArray[np.float32]:
        return run(self.textual, self.tokens(text)).reshape(-1)

    def encode_image(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        return run(self.visual, {"image": image[None]}).reshape(-1)

    def pictures(self) -> list[NDArray[np.float32]]:
        """Three that differ much: a gradient, waves, noise."""
        size = self.spec.vision.image_size
        y, x = np.mgrid[:size, :size] / size
        noise = np.random.default_rng(5).normal(size=(3, size, size))
        made = [np.stack([y, y, y]) * 2 - 1, np.stack([np.sin(6 * x), np.cos(5 * y), np.sin(7 * (x + y))]), noise]
        return [picture.astype(np.float32) for picture in made]


def open_session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(
    session: ort.InferenceSession, inputs: dict[str, NDArray[np.float32]] | dict[str, NDArray[np.int32]]
) -> NDArray[np.float32]:
    return np.asarray(session.run(None, inputs)[0], np.float32)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    folder = tmp_path_factory.mktemp("cache")

    @functools.cache
    def get(name: str) -> Model:
        write_clip_model(folder, name)
        return Model(folder / "clip" / name, model_spec(name))

    return get


Models = Callable[[str], Model]


def differ(first: NDArray[np.float32], second: NDArray[np.float32]) -> bool:
    return float(first @ second) < 0.995


def test_dimensions_follow_the_servers_table() -> None:
    expected = {name: dimension for dimension, names in DIMENSIONS.items() for name in names.split()}
    assert {name: model_spec(name).dimension for name in STOCK_NAMES} == expected
    assert len(STOCK_NAMES) == 58


def test_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no stock CLIP model"):
        write_clip_model(tmp_path, "ViT-B-64__openai")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "size", "patch"),
    [
        ("ViT-B-16-plus-240__laion400m_e31", 240, 16),
        ("ViT-H-14-378-quickgelu__dfn5b", 378, 14),
        ("ViT-B-16-SigLIP-i18n-256__webli", 256, 16),
        ("ViT-SO400M-14-SigLIP2__webli", 224, 14),
        ("ViT-gopt-16-SigLIP2-384__webli", 384, 16),
        ("XLM-Roberta-Large-Vit-B-16Plus", 240, 16),
        ("nllb-clip-large-siglip__v1", 384, 14),
        ("RN50x64__openai", 448, 0),
    ],
)
def test_sizes_follow_the_name(name: str, size: int, patch: int) -> None:
    vision = model_spec(name).vision
    assert (vision.image_size, vision.patch_size) == (size, patch)


@pytest.mark.parametrize("name", FAMILIES)
def test_layout(models: Models, name: str) -> None:
    model = models(name)
    files = {str(path.relative_to(model.root)) for path in model.root.rglob("*") if path.is_file()}
    textual = {"textual/model.onnx", "textual/tokenizer.json", "textual/tokenizer_config.json"}
    assert files == {"config.json", "visual/model.onnx", "visual/preprocess_cfg.json", *textual}
    size, context = model.spec.vision.image_size, model.spec.text.context_length
    assert [(i.name, i.type, i.shape) for i in model.visual.get_inputs()] == [
        ("image", "tensor(float)", [1, 3, size, size])
    ]
    names = ("input_ids", "attention_mask") if model.spec.text.mask_input else ("text",)
    assert [(i.name, i.type, i.shape) for i in model.textual.get_inputs()] == [
        (name, "tensor(int32)", [1, context]) for name in names
    ]
    for session in (model.visual, model.textual):
        assert [(o.name, o.shape) for o in session.get_outputs()] == [("embedding", [1, model.spec.dimension])]
    config = json.loads((model.root / "config.json").read_text())
    preprocess = json.loads((model.root / "visual" / "preprocess_cfg.json").read_text())
    assert config["embed_dim"] == model.spec.dimension
    assert config["vision_cfg"]["image_size"] == size
    assert preprocess["size"] == [size, size]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("tower", ["visual", "textual"])
def test_graph_passes_the_checker(models: Models, name: str, tower: str) -> None:
    onnx.checker.check_model(models(name).root / tower / "model.onnx", full_check=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_images_give_unit_vectors_that_differ(models: Models, name: str) -> None:
    model = models(name)
    vectors = [model.encode_image(picture) for picture in model.pictures()]
    check_unit_vectors(vectors, model.spec.dimension)


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_give_unit_vectors_that_differ(models: Models, name: str) -> None:
    model = models(name)
    texts = ("a photo of a dog", "a photo of a cat", "sunset over the sea", "")
    check_unit_vectors([model.encode_text(text) for text in texts], model.spec.dimension)


def check_unit_vectors(vectors: list[NDArray[np.float32]], dimension: int) -> None:
    for index, vector in enumerate(vectors):
        assert vector.shape == (dimension,)
        assert np.isfinite(vector).all()
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
        assert all(differ(vector, other) for other in vectors[:index])


@pytest.mark.parametrize("name", FAMILIES)
def test_image_tower_computes_its_formulas(models: Models, name: str) -> None:
    model = models(name)
    reference = Reference(model.root / "visual" / "model.onnx")
    for picture in model.pictures()[1:]:
        np.testing.assert_allclose(model.encode_image(picture), reference.encode_image(model.spec, picture), atol=2e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_text_tower_computes_its_formulas(models: Models, name: str) -> None:
    model = models(name)
    reference = Reference(model.root / "textual" / "model.onnx")
    for text in ("two dogs on the beach", "Ω 红色的汽车 and " + "very " * 90):
        inputs = [values[0] for values in model.tokens(text).values()]
        expected = reference.encode_text(model.spec, *inputs)
        np.testing.assert_allclose(model.encode_text(text), expected, atol=2e-5)


@pytest.mark.parametrize("name", ["ViT-B-32__openai", "RN50__openai", "ViT-B-32__laion2b_e16"])
def test_clip_text_ends_at_the_first_end_token(models: Models, name: str) -> None:
    model = models(name)
    ids = model.tokens("a red car")["text"]
    end = int(ids.argmax())
    assert model.tokenizer.id_to_token(int(ids[0, end])) == "<|endoftext|>"
    assert int(ids.max()) == model.tokenizer.get_vocab_size() - 1
    after, before = ids.copy(), ids.copy()
    after[0, end + 1 :] = np.arange(ids.shape[1] - end - 1) % 200
    before[0, end - 1] += 1
    expected = run(model.textual, {"text": ids})
    np.testing.assert_allclose(run(model.textual, {"text": after}), expected, atol=1e-6)
    assert differ(run(model.textual, {"text": before})[0], expected[0])


def test_siglip_text_sees_every_token(models: Models) -> None:
    model = models("ViT-B-16-SigLIP__webli")
    ids = model.tokens("a red car")["text"]
    pad = model.tokenizer.token_to_id("</s>")
    assert (ids[0, 4:] == pad).all()
    for position in (0, 40, 63):
        changed = ids.copy()
        changed[0, position] += 7
        assert np.abs(run(model.textual, {"text": changed}) - run(model.textual, {"text": ids})).max() > 1e-4


@pytest.mark.parametrize("name", ["XLM-Roberta-Large-Vit-B-32", "LABSE-Vit-L-14"])
def test_mclip_ignores_what_the_mask_hides(models: Models, name: str) -> None:
    model = models(name)
    inputs = model.tokens("a red car")
    words = int(inputs["attention_mask"].sum())
    assert words < inputs["attention_mask"].shape[1]
    hidden = {**inputs, "input_ids": np.where(inputs["attention_mask"] == 1, inputs["input_ids"], 50).astype(np.int32)}
    np.testing.assert_allclose(run(model.textual, hidden), run(model.textual, inputs), atol=1e-6)
    hidden["attention_mask"] = np.ones_like(inputs["attention_mask"])
    assert differ(run(model.textual, hidden)[0], run(model.textual, inputs)[0])


def test_nllb_language_prefix_changes_the_ids(models: Models) -> None:
    model = models("nllb-clip-base-siglip__mrl")
    plain = model.tokens("hund")["text"][0]
    vectors = [model.encode_text("hund")]
    for code in ("eng_Latn", "zho_Hans", "zho_Hant", "deu_Latn"):
        ids = model.tokens(f"{code}hund")["text"][0]
        assert ids[1] == model.tokenizer.token_to_id(code)
        np.testing.assert_array_equal(ids[2:], plain[1:-1])
        vectors.append(model.encode_text(f"{code}hund"))
    check_unit_vectors(vectors, 768)


@pytest.mark.parametrize("name", MULTILINGUAL)
@pytest.mark.parametrize("pair", [("一只狗", "一只猫"), ("красная машина", "красная мышь")])
def test_multilingual_texts_differ(models: Models, name: str, pair: tuple[str, str]) -> None:
    first, second = (models(name).tokens(text) for text in pair)
    assert any((first[key] != second[key]).any() for key in first)
    assert differ(models(name).encode_text(pair[0]), models(name).encode_text(pair[1]))


def test_tokenizers_are_like_the_published_ones(models: Models) -> None:
    def words(name: str, text: str) -> list[str]:
        return [token for token in models(name).tokenizer.encode(text).tokens if token not in {"<pad>", "[PAD]"}]

    clip = words("ViT-B-32__openai", "A  DOG's café 12")
    assert clip[:4] == ["<|startoftext|>", "a</w>", "dog</w>", "'"]
    assert clip[-1] == "<|endoftext|>"
    assert "1</w>" in clip
    assert words("ViT-B-16-SigLIP__webli", "a dog")[:3] == ["▁a", "▁dog", "</s>"]
    assert words("ViT-B-32-SigLIP2-256__webli", "a dog ☃") == ["a", "▁dog", "▁", "<0xE2>", "<0x98>", "<0x83>", "<eos>"]
    assert words("nllb-clip-base-siglip__mrl", "a dog") == ["eng_Latn", "▁a", "▁dog", "</s>"]
    assert words("XLM-Roberta-Large-Vit-B-32", "a dog") == ["<s>", "▁a", "▁dog", "</s>"]
    assert words("LABSE-Vit-L-14", "Dog 狗狗 dogx") == ["[CLS]", "Dog", "狗", "狗", "dog", "##x", "[SEP]"]


def test_external_data_lies_beside_the_graph(models: Models, tmp_path: Path) -> None:
    name = "ViT-B-32__openai"
    write_clip_model(tmp_path, name, external_data=True)
    model = Model(tmp_path / "clip" / name, model_spec(name))
    for tower in ("visual", "textual"):
        assert (model.root / tower / "model.onnx").stat().st_size < 100_000
        assert (model.root / tower / "model.onnx.data").stat().st_size > 1_000_000
    np.testing.assert_array_equal(model.encode_text("a dog"), models(name).encode_text("a dog"))
    picture = model.pictures()[1]
    np.testing.assert_array_equal(model.encode_image(picture), models(name).encode_image(picture))


@pytest.mark.parametrize("name", FAMILIES)
def test_dynamic_batch_answers_the_same(models: Models, tmp_path: Path, name: str) -> None:
    write_clip_model(tmp_path, name, dynamic_batch=True)
    model, fixed = Model(tmp_path / "clip" / name, model_spec(name)), models(name)
    assert model.visual.get_inputs()[0].shape[0] == "batch"
    pictures = model.pictures()
    together = run(model.visual, {"image": np.stack(pictures)})
    np.testing.assert_allclose(together, [fixed.encode_image(picture) for picture in pictures], atol=1e-5)
    texts = ("a photo of a dog", "sunset over the sea and the mountains", "")
    tokens = [model.tokens(text) for text in texts]
    batch = {key: np.concatenate([one[key] for one in tokens]) for key in tokens[0]}
    np.testing.assert_allclose(run(model.textual, batch), [fixed.encode_text(text) for text in texts], atol=1e-5)


def test_seed_decides_the_weights(models: Models, tmp_path: Path) -> None:
    name = "ViT-B-32__laion2b_e16"
    first = models(name)
    write_clip_model(tmp_path / "same", name)
    write_clip_model(tmp_path / "other", name, seed=1)
    for tower in ("visual", "textual"):
        expected = (first.root / tower / "model.onnx").read_bytes()
        assert (tmp_path / "same" / "clip" / name / tower / "model.onnx").read_bytes() == expected
        assert (tmp_path / "other" / "clip" / name / tower / "model.onnx").read_bytes() != expected
    same = (tmp_path / "same" / "clip" / name / "textual" / "tokenizer.json").read_bytes()
    assert same == (first.root / "textual" / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("name", FAMILIES)
def test_building_is_quick_and_small(tmp_path: Path, name: str) -> None:
    start = time.process_time()
    write_clip_model(tmp_path, name)
    assert time.process_time() - start < 2
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 20_000_000
