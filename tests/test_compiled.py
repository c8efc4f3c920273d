"""Where engines' forms of graphs lie, and when they go."""

import os
import time
from pathlib import Path

from immich_ml_compat.compiled import COMPILED, compiled_folder, forget_forms
from immich_ml_compat.engine.derived import DerivedGraphs

DAY_S = 24 * 3600


def test_what_nobody_used_for_a_month_goes(tmp_path: Path) -> None:
    now = time.time()
    for name, days in (("old", 40), ("recent", 20), ("mine", 40)):
        folder = tmp_path / COMPILED / name
        (folder / "form").mkdir(parents=True)
        os.utime(folder, (now - days * DAY_S,) * 2)
    assert compiled_folder(tmp_path, "mine") == tmp_path / COMPILED / "mine"
    assert {folder.name for folder in (tmp_path / COMPILED).iterdir()} == {"recent", "mine"}
    assert now - (tmp_path / COMPILED / "mine").stat().st_mtime < DAY_S


def test_a_folder_that_is_not_there_is_no_failure(tmp_path: Path) -> None:
    assert compiled_folder(tmp_path, "mine") == tmp_path / COMPILED / "mine"
    assert not (tmp_path / COMPILED).exists()
    forget_forms(tmp_path, tmp_path / "clip" / "ViT-B-32__openai")


def write(form: Path) -> None:
    form.write_bytes(b"form")


def test_a_models_forms_go_with_it(tmp_path: Path) -> None:
    kinds = [compiled_folder(tmp_path, kind) for kind in ("one", "other")]
    graphs = {name: tmp_path / "clip" / name / "visual" / "model.onnx" for name in ("sea", "seaside")}
    for graph in graphs.values():
        graph.parent.mkdir(parents=True)
        graph.write_bytes(b"graph")
        for kind in kinds:
            assert DerivedGraphs(kind).load(graph, write, Path.read_bytes) == b"form"
    forget_forms(tmp_path, tmp_path / "clip" / "sea")
    left = [form.name for kind in kinds for form in kind.iterdir()]
    assert len(left) == 2
    assert all(name.startswith("clip_seaside_") for name in left)
