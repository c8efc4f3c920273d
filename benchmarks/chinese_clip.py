"""What each size of Chinese-CLIP costs, with full-size random weights: to convert, on disk, in memory, in time.

    python -m benchmarks.chinese_clip [NAME …]

Needs torch and cn-clip (`make test` installs them), 8 GB of disk and, for the largest, 10 GB of memory to make
the checkpoint; every measured step is a process of its own. Times are the fastest of 15 runs, from
the decoded picture or the characters of a query to the embedding.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = ("RN50", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14")
QUERY = "雪地里奔跑的狗"
_RUNS = 15


def main() -> None:
    """Measure the sizes in turn and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--step", choices=STEPS)
    parser.add_argument("--half", action="store_true")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.step:
        found = STEPS[options.step](f"cn-clip_{options.names[0]}", options.folder, options.half)
        print(json.dumps(found | {"peak_mb": _status_mb("VmHWM")}))
        return
    print("| model | checkpoint | conversion, peak memory | on disk | memory, image + text | ms an image | ms a text |")
    print("|---|---|---|---|---|---|---|")
    for name in options.names:
        with tempfile.TemporaryDirectory() as folder:
            print(_row(name, Path(folder)), flush=True)


def _row(name: str, folder: Path) -> str:
    made = _run("make", name, folder)
    converted = _run("convert", name, folder)
    visual, textual = _run("visual", name, folder), _run("textual", name, folder)
    return (
        f"| {name} | {made['mb']:.0f} MB | {converted['seconds']:.0f} s, {converted['peak_mb']:.0f} MB "
        f"| {converted['mb']:.0f} MB | {visual['rss_mb']:.0f} + {textual['rss_mb']:.0f} MB "
        f"| {visual['ms']:.0f} | {textual['ms']:.1f} |"
    )


def _run(step: str, name: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.chinese_clip", name, "--step", step, "--folder", str(folder)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(run.stdout)
    return found


def _make(name: str, folder: Path, _: bool) -> dict[str, float]:
    from tests.chinese_clip import original, save_checkpoint

    checkpoint = folder / "checkpoint.pt"
    save_checkpoint(original(name, small=False), checkpoint)
    return {"mb": checkpoint.stat().st_size / 1e6}


def _convert(name: str, folder: Path, half: bool) -> dict[str, float]:
    from immich_ml_compat.chinese_clip.conversion import convert

    start = time.perf_counter()
    convert(folder / "checkpoint.pt", name, folder / "clip" / name, half=half)
    seconds = time.perf_counter() - start
    size = sum(path.stat().st_size for path in (folder / "clip" / name).rglob("*") if path.is_file())
    return {"seconds": seconds, "mb": size / 1e6}


def _visual(name: str, folder: Path, _: bool) -> dict[str, float]:
    from PIL import Image

    from immich_ml_compat.catalog import ModelType
    from immich_ml_compat.clip.visual import ClipVisual

    tower = _tower(name, folder, ModelType.VISUAL, ClipVisual.load)
    photo = Image.effect_noise((1440, 960), 80).convert("RGB")
    return _measure(lambda: tower.embed(photo))


def _textual(name: str, folder: Path, _: bool) -> dict[str, float]:
    from immich_ml_compat.catalog import ModelType
    from immich_ml_compat.clip.textual import ClipTextual

    tower = _tower(name, folder, ModelType.TEXTUAL, ClipTextual.load)
    return _measure(lambda: tower.embed(QUERY))


def _tower(name: str, folder: Path, kind: Any, load: Callable[[Any, Any], Any]) -> Any:
    from immich_ml_compat.catalog import Task
    from immich_ml_compat.engine.onnxruntime import OnnxRuntimeEngine
    from immich_ml_compat.store import ModelKey, ModelStore

    files = ModelStore(folder).find(ModelKey(Task.CLIP, name, kind))
    return load(files, OnnxRuntimeEngine())


def _measure(embed: Callable[[], object]) -> dict[str, float]:
    seconds = []
    for _ in range(_RUNS + 2):
        start = time.perf_counter()
        embed()
        seconds.append(time.perf_counter() - start)
    return {"ms": min(seconds[2:]) * 1000, "rss_mb": _status_mb("VmRSS")}


def _status_mb(field: str) -> float:
    """Return megabytes of this process's memory (Linux)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) / 1024


STEPS: dict[str, Callable[[str, Path, bool], dict[str, float]]] = {
    "make": _make,
    "convert": _convert,
    "visual": _visual,
    "textual": _textual,
}

if __name__ == "__main__":
    main()
