"""The command line: `predict`, `serve`, and what they say when used wrongly."""

import io
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageDraw, ImageFont

from immich_ml_compat import __version__, predicting
from immich_ml_compat.cli import main
from immich_ml_compat.drawing import FACE_COLOUR, TEXT_COLOUR
from immich_ml_compat.images import decode
from immich_ml_compat.messages import Answer, PredictRequest

from .model_folders import CLIP, FACES, OCR
from .oracles import packaged
from .server import SETTING, Server

WORDS = "HELLO WORLD 2026"


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """People, and a line of text on a plate below them."""
    people = decode(packaged("insightface", "data/images/t1.jpg").read_bytes())
    picture = Image.new("RGB", (people.width, people.height + 160), "white")
    picture.paste(people)
    ImageDraw.Draw(picture).text((60, people.height + 40), WORDS, "black", ImageFont.load_default(64))
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    picture.save(path)
    return path


@pytest.fixture(autouse=True)
def settings_of_the_test(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if SETTING.match(name):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MACHINE_LEARNING_CACHE_FOLDER", str(cache))


def pair(name: str, **recognition: Any) -> dict[str, Any]:
    return {"detection": {"modelName": name}, "recognition": {"modelName": name, "options": recognition}}


# ---------------------------------------------------------------- predict


def test_json_is_the_servers_answer(photo: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--ocr", OCR, "--faces", FACES, "--clip", CLIP, "--format", "json"]
    assert main(["predict", str(photo), *asked]) == 0
    entries = {
        "clip": {"visual": {"modelName": CLIP}},
        "facial-recognition": pair(FACES),
        "ocr": pair(OCR, minScore=0.8),
    }
    printed = capsys.readouterr().out
    assert printed == server.predict(entries, photo.read_bytes()).text + "\n"
    answer = json.loads(printed)
    assert len(answer["facial-recognition"]) > 1
    assert answer["ocr"]["text"] == [WORDS]


def test_json_of_a_text_is_the_servers_answer(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--text", "海边的日落", "--clip", CLIP, "--format", "json"]) == 0
    textual = {"clip": {"textual": {"modelName": CLIP}}}
    assert capsys.readouterr().out == server.predict(textual, text="海边的日落").text + "\n"


def test_it_asks_what_immich_would(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[PredictRequest] = []

    class Recorder:
        def __init__(self, _: object) -> None:
            pass

        def answer(self, request: PredictRequest) -> Answer:
            asked.append(request)
            return Answer(200, b"{}")

    monkeypatch.setattr(predicting, "Service", Recorder)
    assert main(["predict", str(photo), "--ocr", "--faces"]) == 0
    assert main(["predict", "--text", "sea", "--clip", "ViT-L-14__openai"]) == 0
    picture, text = asked
    assert (picture.image, picture.text) == (photo.read_bytes(), None)
    assert json.loads(picture.entries) == {
        "facial-recognition": {"detection": {"modelName": "buffalo_l"}, "recognition": {"modelName": "buffalo_l"}},
        "ocr": pair("PP-OCRv6_small", minScore=0.8),
    }
    assert (text.image, text.text) == (None, "sea")
    assert json.loads(text.entries) == {"clip": {"textual": {"modelName": "ViT-L-14__openai"}}}


def test_table(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(photo), "--ocr", "--faces", FACES, "--clip"]) == 0
    image, clip, *lines = capsys.readouterr().out.splitlines()
    assert image == "image  1280 x 1046"
    assert re.fullmatch(r"clip   512 dimensions: (-?0\.\d{4}, ){4}…", clip)
    faces = [line for line in lines if re.fullmatch(r"face   0\.\d{3}  \d+,\d+ – \d+,\d+", line)]
    assert len(faces) > 1
    assert len(lines) == len(faces) + 1
    assert re.fullmatch(rf"text   [01]\.\d{{3}}  {WORDS}", lines[-1])


def test_table_of_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--text", "sea", "--clip"]) == 0
    assert re.fullmatch(r"clip   512 dimensions: (-?0\.\d{4}, ){4}…\n", capsys.readouterr().out)


def test_nothing_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (90, 60)).save(tmp_path / "black.png")
    assert main(["predict", str(tmp_path / "black.png"), "--ocr", "--faces", FACES]) == 0
    assert capsys.readouterr().out == "image  90 x 60\n"


def test_draw(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.png"
    asked = ["--ocr", "--faces", FACES, "--format", "json", "--draw", str(out)]
    assert main(["predict", str(photo), *asked]) == 0
    answer = json.loads(capsys.readouterr().out)
    before, after = (decode(path.read_bytes()) for path in (photo, out))
    assert after.size == before.size
    changed = np.asarray(ImageChops.difference(before, after)).any(axis=-1)
    explained = np.zeros_like(changed)
    for face in answer["facial-recognition"]:
        left, top, right, bottom = (int(face["boundingBox"][corner]) for corner in ("x1", "y1", "x2", "y2"))
        assert after.getpixel((left, (top + bottom) // 2)) == FACE_COLOUR
        assert after.getpixel(((left + right) // 2, bottom)) == FACE_COLOUR
        explained[max(0, top - 60) : bottom + 2, max(0, left - 2) : right + 60] = True
    (*corners,) = answer["ocr"]["box"]
    xs, ys = np.array(corners[::2]) * before.width, np.array(corners[1::2]) * before.height
    x, y = round(xs.mean()), round(ys[2:].mean())
    assert TEXT_COLOUR in [after.getpixel((x, y + shift)) for shift in (-1, 0, 1)], "the lower edge"
    explained[int(ys.min()) - 60 : int(ys.max()) + 3, int(xs.min()) - 2 : before.width] = True
    assert changed.any()
    assert not (changed & ~explained).any(), "nothing else is touched"


def test_draw_with_a_font_and_another_format(photo: Path, tmp_path: Path) -> None:
    font = tmp_path / "font.ttf"
    default = ImageFont.load_default(10)
    assert isinstance(default, ImageFont.FreeTypeFont)
    assert isinstance(default.path, io.BytesIO)
    font.write_bytes(default.path.getvalue())
    asked = ["--faces", FACES, "--font", str(font), "--draw", str(tmp_path / "out.jpg")]
    assert main(["predict", str(photo), *asked]) == 0
    assert (tmp_path / "out.jpg").read_bytes().startswith(b"\xff\xd8\xff")


# ---------------------------------------------------------------- used wrongly


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["predict", "no-such.jpg", "--ocr"], 2, "no-such.jpg: cannot be read (No such file or directory)\n"),
        (["predict", "FOLDER", "--ocr"], 2, "FOLDER: cannot be read (Is a directory)\n"),
        (["predict", "TEXT", "--ocr"], 1, "TEXT: The image is in no format that can be read\n"),
        (["predict", "EMPTY", "--ocr"], 1, "EMPTY: The image is empty\n"),
        (["predict", "PHOTO"], 2, "nothing to do: give --ocr, --faces or --clip\n"),
        (["predict", "PHOTO", "--clip", "nope"], 1, "PHOTO: Invalid request format. Unknown model for clip: 'nope'.\n"),
        (["predict", "PHOTO", "--faces", "buffalo_l"], 1, "PHOTO: Model 'buffalo_l' is not on this server: "),
        (["predict", "--text", "a"], 2, "--text is for smart search: give --clip, and neither --ocr nor --faces\n"),
        (["predict", "--text", "a", "--clip", "--ocr"], 2, "--text is for smart search: give --clip"),
        (["predict", "--text", "a", "--faces"], 2, "--text is for smart search: give --clip"),
        (["predict", "--text", "", "--clip"], 1, "text: Either image or text must be provided\n"),
        (["predict", "--text", "a", "--clip", "--draw", "a.png"], 2, "--draw needs a photo to draw on\n"),
        (["predict", "PHOTO", "--faces", FACES, "--draw", "FOLDER/a/a.png"], 2, "--draw FOLDER/a/a.png: "),
        (["predict", "PHOTO", "--faces", FACES, "--draw", "FOLDER/a.xyz"], 2, "--draw FOLDER/a.xyz: unknown file ext"),
        (["predict", "PHOTO", "--faces", FACES, "--draw", "FOLDER/a.png", "--font", "TEXT"], 2, "--font TEXT: "),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else "",
)
def test_errors(
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder").mkdir()
    places = {"PHOTO": photo, "TEXT": tmp_path / "text.jpg", "EMPTY": tmp_path / "empty.jpg"}
    places["FOLDER"] = tmp_path / "folder"
    for word, path in places.items():
        arguments = [argument.replace(word, str(path)) for argument in arguments]
        message = message.replace(word, str(path))
    assert main(arguments) == code
    written = capsys.readouterr()
    assert message in written.err
    assert code == 2 or written.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["nonsense"], ["predict"], ["predict", "a.jpg", "--text", "b"], ["predict", "a.jpg", "--format", "xml"]),
        *(["predict", "a.jpg", "b.jpg"], ["predict", "a.jpg", "--zzz"], ["serve", "now"]),
    ],
    ids=" ".join,
)
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: immich-ml-compat" in capsys.readouterr().err


def test_a_bad_setting(photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MACHINE_LEARNING_MODEL_ARENA", "maybe")
    assert main(["predict", str(photo), "--ocr"]) == 2
    assert capsys.readouterr().err.startswith("MACHINE_LEARNING_MODEL_ARENA=maybe: ")


def test_aliases_hold_here_too(
    photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MACHINE_LEARNING_MODEL_ALIASES", '{"PP-OCRv5_server": "PP-OCRv6_small"}')
    assert main(["predict", str(photo), "--ocr", "PP-OCRv5_server"]) == 0
    assert WORDS in capsys.readouterr().out


def test_the_model_for_all_clip_requests_answers_here_too(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def embed(*model: str) -> str:
        assert main(["predict", "--text", "sea", "--format", "json", "--clip", *model]) == 0
        return capsys.readouterr().out

    usual = embed(CLIP)
    monkeypatch.setenv("MACHINE_LEARNING_CLIP_MODEL", CLIP)
    assert embed() == embed("RN101__openai") == usual
    monkeypatch.setenv("MACHINE_LEARNING_CLIP_MODEL", "ViT-L-14__openai")
    assert main(["predict", "--text", "sea", "--clip", CLIP]) == 1
    assert "select ViT-L-14__openai in Immich" in capsys.readouterr().err
    assert main(["predict", "--text", "sea", "--clip"]) == 1
    assert "Model 'ViT-L-14__openai' is not on this server" in capsys.readouterr().err, "asked for by itself"
    monkeypatch.setenv("MACHINE_LEARNING_CLIP_MODEL", "nope")
    assert main(["predict", "--text", "sea", "--clip"]) == 2
    assert capsys.readouterr().err.startswith("MACHINE_LEARNING_CLIP_MODEL=nope: ")


# ---------------------------------------------------------------- processes


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_version() -> None:
    done = run("-m", "immich_ml_compat", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")


@pytest.mark.parametrize("arguments", [["--help"], ["predict", "--help"], ["serve", "--help"], ["--version"]])
def test_help_waits_for_no_engine(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom immich_ml_compat.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as end:\n    print('code', end.code)\n"
        "print('loaded', [name for name in ('onnxruntime', 'cv2', 'numpy', 'PIL', 'fastapi') if name in sys.modules])"
    )
    done = run("-c", program, *arguments)
    assert done.stdout.splitlines()[-2:] == ["code 0", "loaded []"]


def test_without_arguments_the_module_serves(server: Server) -> None:
    assert server.process.args == [sys.executable, "-m", "immich_ml_compat"]
    assert server.process.poll() is None


def test_the_answer_stands_alone_on_standard_output(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMMICH_LOG_LEVEL", "verbose")
    done = run("-m", "immich_ml_compat", "predict", str(photo), "--faces", FACES, "--format", "json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["imageWidth"] == 1280
    assert len(done.stdout.splitlines()) == 1


def test_serving_on_ray_without_ray_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("immich_ml_compat.cli.find_spec", lambda name: None if name == "ray" else find_spec(name))
    assert main(["serve", "--ray"]) == 2
    assert "install immich-ml-compat[ray]" in capsys.readouterr().err
