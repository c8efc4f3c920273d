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
    CLIP_DIMENSIONS,
    EMBEDDED_OCR,
    IMMICH_CLIP_DIMENSIONS,
    IMMICH_NAMES,
    NAMES,
    ModelType,
    Task,
    clean_name,
)
from immich_ml_compat.engine import Engine
from immich_ml_compat.errors import ModelUnavailableError
from immich_ml_compat.models import Model
from immich_ml_compat.names import ModelNames, UnknownModelError
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


def for_all(folder: Path, clip_model: str, **aliases: str) -> ModelNames:
    """Names with a model that answers all CLIP requests."""
    return ModelNames(ModelStore(folder), aliases, clip_model)


def resolved(names: ModelNames, task: Task, name: str) -> str | None:
    """The model that answers, or None where none does."""
    try:
        return names.resolve(task, name)
    except UnknownModelError:
        return None


def refused(names: ModelNames, name: str) -> str:
    """Why no model answers a CLIP request."""
    with pytest.raises(UnknownModelError) as caught:
        names.resolve(Task.CLIP, name)
    return str(caught.value)


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
            assert {task: resolved(names, task, name) for task in Task} == {
                task: name if task == owner else None for task in Task
            }
    assert resolved(names, Task.OCR, "mine") is None


def test_a_folder_is_a_model(folder: Path) -> None:
    names = make(folder)
    put(folder / "ocr" / "mine", kind="recognition")
    assert names.resolve(Task.OCR, "mine") == "mine", "put there while the server runs"
    assert resolved(names, Task.CLIP, "mine") is None
    (folder / "ocr" / "empty").mkdir()
    assert resolved(names, Task.OCR, "empty") is None


# ---------------------------------------------------------------- aliases


def test_an_alias_is_answered_by_its_model(folder: Path) -> None:
    names = make(folder, **{"PP-OCRv5_mobile": EMBEDDED_OCR, "ViT-B-32::openai": "immich-app/ViT-B-16__openai"})
    assert names.resolve(Task.OCR, "PP-OCRv5_mobile") == EMBEDDED_OCR
    assert names.resolve(Task.CLIP, "ViT-B-32__openai") == "ViT-B-16__openai"
    assert resolved(names, Task.CLIP, "PP-OCRv5_mobile") is None, "an alias holds for its task"
    assert names.resolve(Task.OCR, "PP-OCRv5_server") == "PP-OCRv5_server"
    assert names.substitutions() == [
        "ocr requests for PP-OCRv5_mobile are answered by PP-OCRv6_small (MACHINE_LEARNING_MODEL_ALIASES)",
        "clip requests for ViT-B-32__openai are answered by ViT-B-16__openai (MACHINE_LEARNING_MODEL_ALIASES)",
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


# ---------------------------------------------------------------- one model for all CLIP requests

# What the issue asks for.
SELECT = {
    "cn-clip_RN50": "RN50__openai",
    "cn-clip_ViT-B-16": "ViT-B-16__openai",
    "cn-clip_ViT-L-14": "ViT-L-14__openai",
    "cn-clip_ViT-L-14-336": "ViT-L-14-336__openai",
    "cn-clip_ViT-H-14": "ViT-H-14__laion2b-s32b-b79k",
}


@pytest.mark.parametrize(("model", "select"), SELECT.items())
def test_chinese_clip_answers_for_every_name_of_its_dimension(folder: Path, model: str, select: str) -> None:
    names = for_all(folder, model)
    assert names.resolve(Task.CLIP, select) == model
    assert names.resolve(Task.CLIP, model) == model, "by its own name"
    for name in NAMES[Task.CLIP]:
        if CLIP_DIMENSIONS[name] == CLIP_DIMENSIONS[model]:
            assert names.resolve(Task.CLIP, name) == model
        else:
            message = refused(names, name)
            assert f"has {CLIP_DIMENSIONS[name]} dimensions; {model}, which answers every CLIP request here" in message
            assert message.endswith(f"has {CLIP_DIMENSIONS[model]}: select {select} in Immich.")
    assert refused(names, "nope").startswith("'nope' has an unknown number of dimensions; ")
    assert select in refused(names, "nope")
    for task in (Task.FACES, Task.OCR):
        assert all(names.resolve(task, name) == name for name in NAMES[task])
    (sentence,) = names.substitutions()
    assert sentence == (
        f"all clip requests, for whatever name of {CLIP_DIMENSIONS[model]} dimensions, are answered by {model} "
        f"(MACHINE_LEARNING_CLIP_MODEL); select {select} in Immich"
    )


@pytest.mark.parametrize("model", sorted(IMMICH_CLIP_DIMENSIONS))
def test_a_model_of_immichs_is_selected_by_its_own_name(folder: Path, model: str) -> None:
    assert refused(for_all(folder, model), "nope").endswith(f": select {model} in Immich.")


def test_a_folder_may_answer_all_clip_requests(folder: Path) -> None:
    put(folder / "clip" / "house", 640)
    put(folder / "clip" / "shed", 640)
    put(folder / "clip" / "tower", 768)
    put(folder / "clip" / "ruin")
    names = for_all(folder, "own/house")
    for name in ("house", "shed", "RN50x4__openai"):
        assert names.resolve(Task.CLIP, name) == "house"
    assert "'tower' has 768 dimensions; house" in refused(names, "tower")
    assert "'ruin' has an unknown number of dimensions" in refused(names, "ruin")
    selectable = refused(names, "nope").partition(": select ")[2].removesuffix(" in Immich.").split(" or ")
    assert selectable
    assert {IMMICH_CLIP_DIMENSIONS[name] for name in selectable} == {640}
    assert len(refused(names, "x" * 100_000)) < 1000
    put(folder / "clip" / "short", 7)
    assert refused(for_all(folder, "short"), "nope").endswith(": Immich has no model of 7 dimensions to select.")


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        ("ViT-B-16", "did you mean cn-clip_ViT-B-16?"),
        ("RN50", "did you mean cn-clip_RN50?"),
        ("vit-l-14-336", "did you mean cn-clip_ViT-L-14-336?"),
        ("cn_clip_ViT-B-16", "did you mean cn-clip_ViT-B-16"),
        ("ViT-B-32_openai", "did you mean ViT-B-32__openai"),
        ("my-hous", "did you mean my-house"),
        ("zzz", "`models list --all` shows the names"),
        ("buffalo_l", "`models list --all` shows the names"),
        ("../outside", ""),
    ],
)
def test_models_for_all_clip_requests_that_cannot_be(folder: Path, value: str, remedy: str) -> None:
    put(folder / "clip" / "my-house", 512)
    with pytest.raises(ConfigurationError) as caught:
        for_all(folder, value)
    message = str(caught.value)
    assert message.startswith(f"MACHINE_LEARNING_CLIP_MODEL={value}: no known CLIP model, and none with a graph in ")
    assert remedy in message
    assert "\n" not in message


def test_a_folder_without_graphs_is_no_suggestion(folder: Path) -> None:
    (folder / "clip" / "deep").mkdir(parents=True)
    with pytest.raises(ConfigurationError) as caught:
        for_all(folder, "deep")
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize("config", ["[" * 200_000, '{"embed_dim": true}', '{"embed_dim": -1}', '{"embed_dim": 1.5}'])
def test_a_dimension_that_is_none(folder: Path, config: str) -> None:
    put(folder / "clip" / "mine")
    (folder / "clip/mine/config.json").write_text(config)
    with pytest.raises(ConfigurationError, match="the length of its embeddings is not known"):
        for_all(folder, "mine")


def test_a_folder_of_unknown_dimension_cannot_answer_all_clip_requests(folder: Path) -> None:
    put(folder / "clip" / "mine")
    with pytest.raises(ConfigurationError) as caught:
        for_all(folder, "mine")
    assert str(caught.value).startswith("MACHINE_LEARNING_CLIP_MODEL=mine: ")
    config = folder / "clip" / "mine" / "config.json"
    assert str(caught.value).endswith(f"state it as embed_dim in {config}")
    config.write_text('{"embed_dim": 512}')
    assert for_all(folder, "mine").resolve(Task.CLIP, "ViT-B-16__openai") == "mine", "the remedy is one"


def test_an_alias_comes_before_the_model_for_all(folder: Path) -> None:
    aliases = {"ViT-B-32__openai": "RN101__openai", "ViT-L-14__openai": "cn-clip_ViT-L-14", "buffalo_l": "buffalo_s"}
    names = for_all(folder, "cn-clip_ViT-B-16", **aliases)
    assert names.resolve(Task.CLIP, "ViT-B-32__openai") == "RN101__openai"
    assert names.resolve(Task.CLIP, "ViT-L-14__openai") == "cn-clip_ViT-L-14", "of another dimension than the rest"
    assert names.resolve(Task.CLIP, "RN101__openai") == "cn-clip_ViT-B-16", "an alias goes one step"
    assert "select ViT-B-16__openai" in refused(names, "cn-clip_ViT-L-14")
    assert names.resolve(Task.FACES, "buffalo_l") == "buffalo_s"
    *explicit, last = names.substitutions()
    assert [line.rpartition(" ")[2] for line in explicit] == ["(MACHINE_LEARNING_MODEL_ALIASES)"] * 3
    assert last.startswith("all other clip requests, for whatever name of 512 dimensions, are answered by")


CLIP_NAMES = st.sampled_from(sorted(CLIP_DIMENSIONS))


@st.composite
def tables(draw: st.DrawFn) -> dict[str, str]:
    """Aliases that can be: each name answered by one of its dimension."""
    size = CLIP_DIMENSIONS.__getitem__
    return {
        alias: draw(st.sampled_from(sorted(name for name in CLIP_DIMENSIONS if size(name) == size(alias))))
        for alias in draw(st.sets(CLIP_NAMES, max_size=8))
    }


@given(aliases=tables(), model=st.none() | CLIP_NAMES, asked=CLIP_NAMES)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_who_answers_of_any_table(folder: Path, aliases: dict[str, str], model: str | None, asked: str) -> None:
    names = ModelNames(ModelStore(folder), aliases, model)
    answer = resolved(names, Task.CLIP, asked)
    if asked in aliases:
        assert answer == aliases[asked]
    elif model is None:
        assert answer == asked
    else:
        assert answer == (model if CLIP_DIMENSIONS[asked] == CLIP_DIMENSIONS[model] else None)
    assert answer is None or CLIP_DIMENSIONS[answer] == CLIP_DIMENSIONS[asked], "what Immich's column takes"
    assert names.answers_itself(Task.CLIP, asked) == (answer == asked)
    assert len(names.substitutions()) == len(aliases) + (model is not None)


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
    assume(not any(clean_name(name) in known for known in NAMES.values()))
    check_hostile(folder, name)


def check_hostile(folder: Path, name: str) -> None:
    cleaned = clean_name(name)
    assert not set("/\\:.") & set(cleaned)
    names, store = make(folder), ModelStore(folder)
    for task in Task:
        assert resolved(names, task, cleaned) is None
        assert not store.holds(task, cleaned)
        location = store.model_folder(task, cleaned)
        assert location.is_relative_to(folder)
        assert ".." not in location.parts
    assert store.clip_dimension(cleaned) is None
    with pytest.raises(ConfigurationError):
        make(folder, **{"ViT-B-32__openai": name})
    assert "an unknown number of dimensions" in refused(for_all(folder, "cn-clip_RN50"), name)
    if name:
        with pytest.raises(ConfigurationError):
            for_all(folder, name)


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
