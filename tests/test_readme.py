"""What the README shows is what happens, and what the documents name is there."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from immich_ml_compat.settings import PREFIX, Settings

from .oracles import missing
from .server import Server

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_first_request_is_answered_as_shown(server: Server) -> None:
    (command,) = [block for block in blocks("sh") if block.startswith("curl")]
    shown = json.loads(blocks("json")[0])
    words = shlex.split(command.replace("http://localhost:3003", server.url).replace("\\\n", ""))
    try:
        output = subprocess.run(words, cwd=ROOT, capture_output=True, check=True).stdout
    except FileNotFoundError:
        missing("curl")
    ocr = json.loads(output)["ocr"]
    assert shown["ocr"].pop("box")[:8] == pytest.approx(ocr["box"][:8], abs=0.01)
    assert shown["ocr"]["text"] == ocr["text"]
    for scores in ("boxScore", "textScore"):
        assert shown["ocr"][scores] == pytest.approx(ocr[scores], abs=0.01)


def test_the_predict_command_prints_what_is_shown() -> None:
    (shown,) = blocks("text")
    command = [sys.executable, "-m", "immich_ml_compat", "predict", "docs/invoice.jpg", "--ocr"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == shown


def test_the_alias_shown_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = [block for block in blocks("sh") if block.startswith(f"{PREFIX}MODEL_ALIASES=")]
    assert line.endswith("' make serve\n")
    name, _, value = line.strip().partition("=")
    monkeypatch.setenv(name, shlex.split(value)[0])
    assert Settings().model_aliases == {"PP-OCRv5_mobile": "PP-OCRv6_small"}


def test_every_setting_is_in_the_table() -> None:
    table = README[README.index("### Settings") : README.index("## Licences")]
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias if isinstance(field.validation_alias, str) else None
        short = re.sub("^(MODEL_INTER|MODEL_TTL|WORKER)_", "", name.upper())  # the table's `…_`
        assert (alias or short) in table, name


def test_the_tree_names_every_module() -> None:
    package = ROOT / "immich_ml_compat"
    tree = README[README.index("immich_ml_compat/\n") : README.index("A new model family")]
    for module in package.glob("*.py"):
        assert module.name.startswith("__") or f"{module.name} " in tree, module.name


def test_the_compose_lines_change_one_line_of_immichs() -> None:
    (compose,) = blocks("yaml")
    assert "image: immich-ml-compat:cpu" in compose
    assert "model-cache:/cache" in compose
    assert (ROOT / "Dockerfile.cpu").is_file()


# ---------------------------------------------------------------- what the documents point to

FOLDERS = (".", "docs", "benchmarks", "model_cache", "patches", "requirements")
DOCUMENTS = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.md"))]


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = document.parent / path if path else document
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


def test_every_test_that_is_named_is_there() -> None:
    """`file.py`, `file.py::test_name` or `…test_name` of any file; a name may be cut with `…`."""
    tests = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py")}
    named = 0
    for document in DOCUMENTS:
        for file, name, cut in re.findall(
            r"`(?:tests/)?(test_\w+\.py|…)(?:(?:::)?(test_\w+)(…?))?`", document.read_text(encoding="utf-8")
        ):
            sources = [tests[file]] if file in tests else tests.values() if file == "…" else []
            definition = rf"^def {name}{'' if cut else '[(]'}" if name else ""
            assert any(re.search(definition, source, re.MULTILINE) for source in sources), (document.name, file, name)
            named += 1
    assert named > 15
