"""The names: those Immich knows, those on disk, aliases, and names that are traps."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from immich_ml_compat.catalog import (
    EMBEDDED_OCR,
    IMMICH_CLIP_DIMENSIONS,
    IMMICH_NAMES,
    ModelType,
    Task,
    clean_name,
)
from immich_ml_compat.engine import Engine
from immich_ml_compat.errors import ModelUnavailableError
from immich_ml_compat.models import Model
from immich_ml_compat.names import ModelNames
from immich_ml_compat.settings import ConfigurationError
from immich_ml_compat.store import ModelFiles, ModelKey, ModelStore

from .shelf import Shelf


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty cache folder with its task folders, and something to steal beside it."""
    cache = tmp_path / "cache"
    for task in Task:
        (cache / task).mkdir(parents=True)
    put(tmp_path / "outside")
    return cache


def put(model: Path, dimension: object = None, kind: str = "visual") -> None:
    """Put a model's folder on disk; nobody loads it."""
    (model / kind).mkdir(parents=True)
    (model / kind / "model.onnx").write_bytes(b"graph")
    if dimension is not None:
        (model / "config.json").write_text(json.dumps({"embed_dim": dimension}))


def make(folder: Path, **aliases: str) -> ModelNames:
    return ModelNames(ModelStore(folder), aliases)


# ---------------------------------------------------------------- the known names


# As the contract writes them: each brace stands for one of its words.
STOCK = {
    Task.CLIP: """
        RN101__{openai,yfcc15m} RN50__{cc12m,openai,yfcc15m} RN50x16__openai RN50x4__openai RN50x64__openai
        ViT-B-16-SigLIP-{256,384,512}__webli ViT-B-16-SigLIP-i18n-256__webli ViT-B-16-SigLIP__webli
        ViT-B-16-plus-240__laion400m_{e31,e32} ViT-B-16__{laion400m_e31,laion400m_e32,openai}
        ViT-B-32__{laion2b-s34b-b79k,laion2b_e16,laion400m_e31,laion400m_e32,openai}
        ViT-H-14-378-quickgelu__dfn5b ViT-H-14-quickgelu__dfn5b ViT-H-14__laion2b-s32b-b79k ViT-L-14-336__openai
        ViT-L-14-quickgelu__dfn2b ViT-L-14__{laion2b-s32b-b82k,laion400m_e31,laion400m_e32,openai}
        ViT-L-16-SigLIP-{256,384}__webli ViT-SO400M-14-SigLIP-384__webli ViT-g-14__laion2b-s12b-b42k
        XLM-Roberta-Base-ViT-B-32__laion5b_s13b_b90k XLM-Roberta-Large-ViT-H-14__frozen_laion5b_s13b_b90k
        nllb-clip-{base,large}-siglip__{mrl,v1} ViT-B-16-SigLIP2__webli ViT-B-32-SigLIP2-256__webli
        ViT-L-16-SigLIP2-{256,384,512}__webli ViT-SO400M-14-SigLIP2-378__webli ViT-SO400M-14-SigLIP2__webli
        ViT-SO400M-16-SigLIP2-{256,384,512}__webli ViT-gopt-16-SigLIP2-{256,384}__webli
        LABSE-Vit-L-14 XLM-Roberta-Large-Vit-{B-16Plus,B-32,L-14}
    """,
    Task.FACES: "antelopev2 buffalo_{s,m,l}",
    Task.OCR: """
        PP-OCRv5_{server,mobile} CH__PP-OCRv5_{server,mobile} {EL,EN,ESLAV,KOREAN,LATIN,TH}__PP-OCRv5_mobile
        PP-OCRv6_{tiny,small,medium}
    """,
}


def expand(pattern: str) -> set[str]:
    parts = [part.split(",") for part in re.split("[{}]", pattern)]
    return {"".join(choice) for choice in itertools.product(*parts)}


def test_the_names_of_the_stock_server() -> None:
    stock = {task: set().union(*map(expand, text.split())) for task, text in STOCK.items()}
    assert [len(names) for names in stock.values()] == [58, 4, 13]
    for task, names in stock.items():
        assert IMMICH_NAMES[task] == names
        assert all(clean_name(name) == name for name in names)


# The contract's table, by beginnings of names; the longest that fits counts.
DIMENSIONS = {
    512: "RN101 ViT-B-16__ ViT-B-32__ XLM-Roberta-Base-ViT-B-32 XLM-Roberta-Large-Vit-B-32",
    640: "RN50x4 ViT-B-16-plus-240 XLM-Roberta-Large-Vit-B-16Plus",
    768: "RN50x16 ViT-B-16-SigLIP ViT-B-32-SigLIP2-256 ViT-L-14 LABSE XLM-Roberta-Large-Vit-L-14 nllb-clip-base",
    1024: "RN50__ RN50x64 ViT-H-14 ViT-L-16-SigLIP ViT-g-14 XLM-Roberta-Large-ViT-H-14",
    1152: "ViT-SO400M nllb-clip-large",
    1536: "ViT-gopt",
}


@pytest.mark.parametrize("name", sorted(IMMICH_CLIP_DIMENSIONS))
def test_dimensions(name: str) -> None:
    rows = [
        (len(start), size) for size, starts in DIMENSIONS.items() for start in starts.split() if name.startswith(start)
    ]
    assert IMMICH_CLIP_DIMENSIONS[name] == max(rows)[1]


def test_names_resolve_in_their_own_task_only(folder: Path) -> None:
    names = make(folder)
    for owner, known in IMMICH_NAMES.items():
        for name in known:
            assert {task: names.resolve(task, name) for task in Task} == {
                task: name if task == owner else None for task in Task
            }
    assert names.resolve(Task.OCR, "mine") is None


def test_a_folder_is_a_model(folder: Path) -> None:
    names = make(folder)
    put(folder / "ocr" / "mine", kind="recognition")
    assert names.resolve(Task.OCR, "mine") == "mine", "put there while the server runs"
    assert names.resolve(Task.CLIP, "mine") is None
    (folder / "ocr" / "empty").mkdir()
    assert names.resolve(Task.OCR, "empty") is None


# ---------------------------------------------------------------- aliases


def test_an_alias_is_answered_by_its_model(folder: Path) -> None:
    names = make(folder, **{"PP-OCRv5_mobile": EMBEDDED_OCR, "ViT-B-32::openai": "immich-app/ViT-B-16__openai"})
    assert names.resolve(Task.OCR, "PP-OCRv5_mobile") == EMBEDDED_OCR
    assert names.resolve(Task.CLIP, "ViT-B-32__openai") == "ViT-B-16__openai"
    assert names.resolve(Task.CLIP, "PP-OCRv5_mobile") is None, "an alias holds for its task"
    assert names.resolve(Task.OCR, "PP-OCRv5_server") == "PP-OCRv5_server"
    assert names.substitutions() == [
        "ocr requests for PP-OCRv5_mobile are answered by PP-OCRv6_small",
        "clip requests for ViT-B-32__openai are answered by ViT-B-16__openai",
    ]


def test_an_alias_may_be_any_name(folder: Path) -> None:
    names = make(folder, **{"my/own.name": "buffalo_l", "二": EMBEDDED_OCR})
    assert names.resolve(Task.FACES, clean_name("my/own.name")) == "buffalo_l"
    assert names.resolve(Task.OCR, "二") == EMBEDDED_OCR


def test_an_alias_goes_one_step(folder: Path) -> None:
    names = make(folder, antelopev2="buffalo_l", buffalo_l="buffalo_s")
    assert names.resolve(Task.FACES, "antelopev2") == "buffalo_l"
    assert names.resolve(Task.FACES, "buffalo_l") == "buffalo_s"


@pytest.mark.parametrize(
    ("alias", "model", "message"),
    [
        ("PP-OCRv5_mobile", "buffalo_l", "PP-OCRv5_mobile is a model for ocr, buffalo_l one for facial-recognition"),
        ("buffalo_l", "ViT-B-32__openai", "buffalo_l is a model for facial-recognition"),
        ("ViT-B-32__openai", "ViT-L-14__openai", "ViT-B-32__openai gives 512 dimensions and ViT-L-14__openai 768"),
        ("ViT-B-32__openai", "nope", "nope is neither a model that Immich knows nor one in"),
        ("ViT-B-32__openai", "../outside", "outside is neither"),
        ("never-heard-of", "ViT-L-14__openai", "never-heard-of gives an unknown number of dimensions"),
    ],
)
def test_aliases_that_cannot_be(folder: Path, alias: str, model: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make(folder, **{alias: model})
    assert str(caught.value).startswith("MACHINE_LEARNING_MODEL_ALIASES: ")
    assert message in str(caught.value)


def test_a_folder_of_equal_dimension_may_answer_for_a_clip_name(folder: Path) -> None:
    put(folder / "clip" / "chinese", 512)
    assert make(folder, **{"ViT-B-16__openai": "chinese"}).resolve(Task.CLIP, "ViT-B-16__openai") == "chinese"
    assert make(folder, chinese="ViT-B-16__openai").resolve(Task.CLIP, "chinese") == "ViT-B-16__openai"
    with pytest.raises(ConfigurationError, match="768 dimensions and chinese 512"):
        make(folder, **{"ViT-L-14__openai": "chinese"})


@pytest.mark.parametrize(
    "config", ["", "text", "[]", "null", "{}", '{"embed_dim": "512"}', '{"embed_dim": null}', "\0"]
)
def test_a_folder_of_unknown_dimension_may_not(folder: Path, config: str) -> None:
    put(folder / "clip" / "mine")
    (folder / "clip" / "mine" / "config.json").write_text(config)
    with pytest.raises(
        ConfigurationError, match="mine an unknown number; a CLIP model is only answered by one of equal"
    ):
        make(folder, **{"ViT-B-16__openai": "mine"})


# ---------------------------------------------------------------- traps

HOSTILE = [
    *("", ".", "..", "../..", "../outside", "../../outside", "/", "//", "/etc/passwd", "~", "~root", "a/..", "../clip"),
    *("..\\..\\outside", "C:\\Windows", "\\\\host\\share", "\0", "a\0b", "outside\0", "a\nb", "\n", "\t", " ", "\x7f"),
    *("x" * 201, "x" * 255, "x" * 256, "x" * 10_240, "好" * 80, "好" * 100, "🏖" * 64, "é" * 128, "/x" * 5000),
    *("\ud800", "\udcff", "\u202e", "\ufeff", "%2e%2e", "..%2foutside", "$HOME", "`id`", "CON", "nul", "-rf", "*"),
]


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name[:20]))
def test_hostile_names(folder: Path, name: str) -> None:
    check_hostile(folder, name)


@given(name=st.text(st.sampled_from("./\\:~outsideclp\0\n好\ud800 ")) | st.text(max_size=300))
@example(name="\ud800" * 30)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_name(folder: Path, name: str) -> None:
    assume(not any(clean_name(name) in known for known in IMMICH_NAMES.values()))
    check_hostile(folder, name)


def check_hostile(folder: Path, name: str) -> None:
    cleaned = clean_name(name)
    assert not set("/\\:.") & set(cleaned)
    names, store = make(folder), ModelStore(folder)
    for task in Task:
        assert names.resolve(task, cleaned) is None
        assert not store.holds(task, cleaned)
        location = store.model_folder(task, cleaned)
        assert location.is_relative_to(folder)
        assert ".." not in location.parts
    assert store.clip_dimension(cleaned) is None
    with pytest.raises(ConfigurationError):
        make(folder, **{"ViT-B-32__openai": name})


def test_a_link_out_of_the_cache_is_the_owners_choice(folder: Path) -> None:
    (folder / "clip" / "linked").symlink_to(folder.parent / "outside")
    assert make(folder).resolve(Task.CLIP, "linked") == "linked"


# ---------------------------------------------------------------- the embedded model


def test_the_embedded_model_is_found_without_importing_its_package(folder: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from immich_ml_compat.store import ModelStore, ModelKey;"
        "from immich_ml_compat.catalog import Task, ModelType;"
        "files = [ModelStore(Path(sys.argv[1])).find(ModelKey(Task.OCR, 'PP-OCRv6_small', kind))"
        " for kind in (ModelType.DETECTION, ModelType.RECOGNITION)];"
        "print(*(file.graph for file in files), sep='\\n'); print('rapidocr' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, check=True)
    detection, recognition, imported = run.stdout.splitlines()
    assert imported == "False"
    assert Path(detection).name == "PP-OCRv6_det_small.onnx"
    assert Path(recognition).name == "PP-OCRv6_rec_small.onnx"
    assert Path(detection).is_file()


def test_a_folder_of_the_embedded_models_name_comes_first(folder: Path) -> None:
    put(folder / "ocr" / EMBEDDED_OCR, kind="detection")
    store = ModelStore(folder)
    found = store.find(ModelKey(Task.OCR, EMBEDDED_OCR, ModelType.DETECTION))
    installed = store.find(ModelKey(Task.OCR, EMBEDDED_OCR, ModelType.RECOGNITION))
    assert found is not None
    assert found.graph == folder / "ocr" / EMBEDDED_OCR / "detection" / "model.onnx"
    assert installed is not None
    assert not installed.graph.is_relative_to(folder)


def test_a_missing_model_says_where_it_belongs_and_for_ocr_which_alias_helps(folder: Path) -> None:
    models = Shelf(folder)

    def never(_files: ModelFiles, _engine: Engine) -> Model:
        raise AssertionError("there is nothing to load")

    def detail(task: Task, name: str, kind: ModelType) -> str:
        with pytest.raises(ModelUnavailableError) as caught:
            models.get(ModelKey(task, name, kind), never)
        assert caught.value.status == 500
        return caught.value.detail

    ocr = detail(Task.OCR, "PP-OCRv5_mobile", ModelType.DETECTION)
    assert "could not be downloaded" in ocr
    variable, _, value = ocr.rpartition("set ")[2].partition("=")
    assert variable == "MACHINE_LEARNING_MODEL_ALIASES"
    assert make(folder, **json.loads(value)).resolve(Task.OCR, "PP-OCRv5_mobile") == EMBEDDED_OCR, "it works as printed"
    assert "ALIASES" not in detail(Task.FACES, "buffalo_l", ModelType.DETECTION)
    assert "ALIASES" not in detail(Task.CLIP, "ViT-B-32__openai", ModelType.VISUAL)
