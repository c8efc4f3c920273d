"""Checkpoints: what torch writes is read to the bit, what means harm is refused before it does any."""

import pickle
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from immich_ml_compat.chinese_clip.checkpoint import CheckpointError, open_checkpoint
from immich_ml_compat.chinese_clip.unpickling import Unpickler

from .checkpoints import (
    ORDERED_DICT,
    REBUILD,
    Call,
    Global,
    Persistent,
    Raw,
    assemble,
    change_entry,
    pickled,
    storage,
    tensor,
    vector,
    write_archive,
    write_checkpoint,
)
from .oracles import oracle

CONTAINERS: dict[str, dict[str, Any]] = {
    "zip": {},
    "zip, protocol 3": {"pickle_protocol": 3},
    "zip, protocol 4": {"pickle_protocol": 4},
    "zip, protocol 5": {"pickle_protocol": 5},
    "stream": {"_use_new_zipfile_serialization": False},
    "stream, protocol 4": {"_use_new_zipfile_serialization": False, "pickle_protocol": 4},
}
# torch writes the other unsigned integers and all 8-bit floats in a way of its own, which no CLIP model needs.
DTYPES = ["float32", "float16", "float64", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]

per_example = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture(scope="session")
def torch() -> ModuleType:
    return oracle("torch")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.pt"


def read(path: Path) -> dict[str, Any]:
    """Every tensor of a checkpoint."""
    with open_checkpoint(path) as checkpoint:
        arrays = {name: checkpoint.read(name) for name in checkpoint.shapes}
        assert {name: array.shape for name, array in arrays.items()} == checkpoint.shapes
    return arrays


def refused(path: Path) -> str:
    """The one line that says why a checkpoint cannot be used."""
    with pytest.raises(CheckpointError) as raised:
        read(path)
    (line,) = str(raised.value).splitlines()
    assert line.startswith(f"{path}: ")
    assert line.count(". ") >= 1, "a remedy follows the cause"
    return line.removeprefix(f"{path}: ")


def assert_same(torch: ModuleType, arrays: dict[str, Any], tensors: dict[str, Any]) -> None:
    assert arrays.keys() == tensors.keys()
    for name, original in tensors.items():
        expected = original.detach()
        expected = (expected.float() if expected.dtype == torch.bfloat16 else expected).numpy()
        array = arrays[name]
        assert type(array) is np.ndarray
        assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
        assert array.flags.c_contiguous
        assert array.dtype.isnative
        assert array.tobytes() == expected.tobytes(), name


def printed(program: str, path: Path, megabytes: int) -> list[str]:
    """The lines that a program prints which may not take more memory than that for what it does with a path."""
    start = f"""
import psutil, resource, sys
from pathlib import Path
from immich_ml_compat.chinese_clip.checkpoint import CheckpointError, open_checkpoint
limit = psutil.Process().memory_info().vms + ({megabytes} << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
"""
    run = subprocess.run([sys.executable, "-c", start + program, path], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


# ---------------------------------------------------------------- what torch writes


def model(torch: ModuleType) -> Any:
    """A module with parameters, buffers, a scalar, and a state dict that has `_metadata`."""
    torch.manual_seed(4)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 5))
    module.register_parameter("logit_scale", torch.nn.Parameter(torch.tensor(2.659)))
    return module


@pytest.mark.parametrize("options", CONTAINERS.values(), ids=CONTAINERS)
@pytest.mark.parametrize("half", [False, True])
def test_an_official_checkpoint_is_read(torch: ModuleType, path: Path, options: dict[str, Any], half: bool) -> None:
    """As the trainer of Chinese-CLIP writes it: `module.` before all names, the optimizer's state beside."""
    state = torch.nn.DataParallel(model(torch)).state_dict()
    assert set(state) == {f"module.{name}" for name in model(torch).state_dict()}
    assert state._metadata, "torch gives its dict a state of its own"
    if half:
        state = {name: value.half() for name, value in state.items()}
    moments = {number: {"step": 7, "exp_avg": torch.rand(3, 4)} for number in range(3)}
    groups = [{"lr": 1e-5, "betas": (0.9, 0.98), "foreach": None, "params": list(moments)}]
    optimizer = {"state": moments, "param_groups": groups}
    whole = {"epoch": 3, "step": 1 << 40, "name": "a name", "state_dict": state, "optimizer": optimizer}
    torch.save(whole, path, **options)
    assert_same(torch, read(path), {name.removeprefix("module."): value for name, value in state.items()})


def test_a_bare_state_dict_is_read(torch: ModuleType, path: Path) -> None:
    state = {**model(torch).state_dict(), "version": 3, "names": ["a"], 7: torch.ones(2)}
    torch.save(state, path)
    assert_same(torch, read(path), model(torch).state_dict())


def test_a_prefix_is_taken_off_only_where_all_have_it(torch: ModuleType, path: Path) -> None:
    state = {"module.a": torch.ones(1), "b": torch.zeros(1)}
    torch.save({"state_dict": state}, path)
    assert_same(torch, read(path), state)


@pytest.mark.parametrize("options", CONTAINERS.values(), ids=CONTAINERS)
def test_every_type_of_element_is_read(torch: ModuleType, path: Path, options: dict[str, Any]) -> None:
    whole = torch.arange(-8, 16).reshape(2, 3, 4)
    state: dict[str, Any] = {}
    for dtype in DTYPES:
        values = whole.to(getattr(torch, dtype))
        state |= {f"{dtype}": values, f"{dtype} scalar": values[1, 1, 1].clone(), f"{dtype} empty": values[:0].clone()}
        state |= {f"{dtype} turned": values.transpose(0, 2), f"{dtype} slice": values[1, :, 1:3]}
    state["extremes"] = torch.tensor([float("inf"), float("nan"), -0.0, 1e-45])
    state["bfloat16 extremes"] = state["extremes"].bfloat16()
    torch.save(state, path, **options)
    assert_same(torch, read(path), state)


@st.composite
def state_dicts(draw: Callable[..., Any], torch: ModuleType) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for name in draw(st.lists(st.text(max_size=9).filter(lambda text: text.isprintable()), min_size=1, unique=True)):
        if state and draw(st.booleans()):
            values = draw(st.sampled_from(list(state.values()))).detach()  # another view of that storage
        else:
            shape = draw(st.lists(st.integers(0, 5), max_size=4))
            values = torch.randint(-99, 99, shape).to(getattr(torch, draw(st.sampled_from(DTYPES))))
        if values.dim() and draw(st.booleans()):
            dimension = draw(st.integers(0, values.dim() - 1))
            values = values.transpose(0, dimension)
            values = values[draw(st.integers(0, 2)) :: draw(st.integers(1, 3))]
        if values.is_floating_point() and draw(st.booleans()):
            values = torch.nn.Parameter(values, draw(st.booleans()))
        state[name] = values
    return state


@per_example
@given(st.data())
def test_any_state_dict_is_read(torch: ModuleType, tmp_path: Path, data: st.DataObject) -> None:
    state = data.draw(state_dicts(torch))
    path = tmp_path / "any.pt"
    torch.save(state, path, **data.draw(st.sampled_from(list(CONTAINERS.values()))))
    wrapped = all(name.startswith("module.") for name in state)
    assert_same(torch, read(path), {name.removeprefix("module.") if wrapped else name: state[name] for name in state})


def test_what_torch_writes_without_crcs_is_read(torch: ModuleType, path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(model(torch).state_dict(), path)
    finally:
        torch.serialization.set_crc32_options(True)
    with ZipFile(path) as archive:
        assert not any(entry.CRC for entry in archive.infolist())
    assert_same(torch, read(path), model(torch).state_dict())


def test_a_torchscript_program_is_named_as_one(torch: ModuleType, path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.trace(model(torch)[2], torch.ones(1, 4)).save(path)
    assert "TorchScript program" in refused(path)


def test_a_tensor_that_repeats_its_elements_is_refused(torch: ModuleType, path: Path) -> None:
    """Four bytes in the file would be any number in memory."""
    torch.save({"a": torch.ones(1).expand(1 << 20, 1 << 20)}, path)
    assert "covers more than its storage" in refused(path)


def test_a_tensor_of_another_kind_is_refused(torch: ModuleType, path: Path) -> None:
    torch.save({"a": torch.eye(3).to_sparse()}, path)
    assert "torch._utils._rebuild_sparse_tensor" in refused(path)
    torch.save({"a": torch.tensor([1j]).conj()}, path)
    assert "torch.ComplexFloatStorage" in refused(path)


# ---------------------------------------------------------------- files made by hand


def test_files_made_by_hand_are_such_as_torch_reads(torch: ModuleType, path: Path) -> None:
    """What is refused below is refused for what was changed in it."""
    state = {"a": vector("0", 10), "b": tensor(storage("0", 10), (2, 2), (1, 5), 3)}
    write_checkpoint(path, state)
    assert_same(torch, read(path), torch.load(path))


def test_the_byte_order_is_that_of_the_machine_that_wrote(torch: ModuleType, path: Path) -> None:
    kinds = {"FloatStorage": ">f4", "HalfStorage": ">f2", "LongStorage": ">i8", "BFloat16Storage": ">i2"}
    state = {kind: vector(str(key), 5, kind) for key, kind in enumerate(kinds)}
    elements = {str(key): np.arange(300, 305).astype(order).tobytes() for key, order in enumerate(kinds.values())}
    write_archive(path, pickled(state), elements, "big")
    assert_same(torch, read(path), torch.load(path))


def test_a_tensor_that_is_not_there_is_named(path: Path) -> None:
    write_checkpoint(path, {"a": vector("0", 10)})
    with open_checkpoint(path) as checkpoint, pytest.raises(CheckpointError, match=r"no tensor 'visual\.proj'"):
        checkpoint.read("visual.proj")


@pytest.mark.parametrize("root", [{}, [], None, {"state_dict": {"epoch": 1}}, {"state_dict": 3}, vector("0", 10)])
def test_a_checkpoint_without_tensors_is_refused(path: Path, root: Any) -> None:
    write_checkpoint(path, root)
    assert "holds no tensors" in refused(path)


OTHERS = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n": "Git LFS pointer",
    b"<!DOCTYPE html><title>404</title>": "a web page",
    b"\n <html></html>": "a web page",
    struct.pack("<Q", 2) + b"{}" + bytes(9): "safetensors",
    b"": "empty",
    b"{}": "no PyTorch checkpoint",
    bytes(1000): "no PyTorch checkpoint",
    pickle.dumps({"a": 1}): "no checkpoint that torch.save wrote",
    b"PK\3\4" + bytes(100): "zip directory",
}


@pytest.mark.parametrize("content", OTHERS)
def test_other_files_are_named_for_what_they_are(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert OTHERS[content] in refused(path)


def test_a_file_that_cannot_be_read_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), open_checkpoint(tmp_path / "none.pt"):
        pass
    with pytest.raises(IsADirectoryError), open_checkpoint(tmp_path):
        pass


# ---------------------------------------------------------------- the unpickler


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 900), 1 << 900) | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(0, 1 << 30), inner)
        | inner.map(lambda value: [value, value])  # the second comes from the memo
    ),
)


@per_example
@given(plain, st.sampled_from([2, 3, 4, 5]))
def test_plain_values_come_out_as_python_reads_them(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    ours = Unpickler(BytesIO(data)).load()
    assert repr(ours) == repr(pickle.loads(data)) == repr(value)


def assert_read_or_refused(data: bytes | bytearray) -> None:
    cause = "its pickle was read"
    try:
        Unpickler(BytesIO(data)).load()
    except ValueError as error:
        cause = str(error)
    assert cause.startswith("its pickle ")


GOOD = pickled({"epoch": 1, "state_dict": Call(ORDERED_DICT, ()), "a": vector("0", 10), "b": [(1, True, None), "c"]})


@per_example
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=5))
def test_a_changed_pickle_is_read_or_refused(changes: list[tuple[int, int]]) -> None:
    data = bytearray(GOOD)
    for position, value in changes:
        data[position] = value
    assert_read_or_refused(data)


@per_example
@given(
    st.binary(max_size=60) | st.lists(st.sampled_from(b"\x80\x02(.]}tue)RQbcsahqj\x85\x86\x8a\x93\x94X0")).map(bytes)
)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    assert_read_or_refused(data)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_runs_a_program_runs_none(tmp_path: Path, path: Path, protocol: int) -> None:
    target = tmp_path / "made by the pickle"

    class Harm:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return Path.touch, (target,)

    payload = pickle.dumps({"state_dict": {"a": Harm()}}, protocol)
    pickle.loads(payload)
    assert target.exists(), "Python's own unpickler runs it"
    target.unlink()
    write_archive(path, payload, {})
    assert "no checkpoint of tensors needs" in refused(path)
    path.write_bytes(pickled(0x1950A86A20F9469CFC6C) + pickled(1001) + pickled({}) + payload)
    assert "no checkpoint" in refused(path)
    assert not target.exists()


NAMES = [
    ("os", "system"),
    ("posix", "system"),
    ("builtins", "eval"),
    ("builtins", "getattr"),
    ("numpy", "load"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("torch", "load"),
    ("torch.hub", "load"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_import_dotted_name"),
    ("torch", "UntypedStorage"),
    ("torch.FloatStorage", "from_file"),
    ("torch", "FloatStorage.from_file"),
    ("torch", ""),
    ("", ""),
    ("torch FloatStorage", ""),
    ("", "torch FloatStorage"),
    ("collections", "OrderedDict.fromkeys"),
    ("immich_ml_compat.chinese_clip.tensors", "_tensor"),
    ("x" * 200, "y" * 200),
]


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_other_names_are_refused(path: Path, module: str, name: str) -> None:
    write_checkpoint(path, Call(Global(module, name), ("true",)))
    assert "no checkpoint of tensors needs" in refused(path)
    write_checkpoint(path, Raw(assemble(module) + assemble(name) + b"\x93" + assemble(("true",)) + b"R"))
    assert "no checkpoint of tensors needs" in refused(path)


def test_a_name_that_is_not_text_is_refused(path: Path) -> None:
    for code in (b"NN\x93", assemble("torch") + b"}\x93", assemble(("torch",)) + assemble("FloatStorage") + b"\x93"):
        write_checkpoint(path, Raw(code))
        assert "no checkpoint of tensors needs" in refused(path)


FLOAT = Global("torch", "FloatStorage")
OBJECTS: dict[str, Any] = {
    "a storage is called": Call(FLOAT, (1,)),
    "text is called": Raw(assemble("os.system") + b")R"),
    "a name is called with no tuple": Raw(assemble(ORDERED_DICT) + b"]R"),
    "OrderedDict with elements": Call(ORDERED_DICT, ([("a", 1)],)),
    "OrderedDict with many": Call(ORDERED_DICT, tuple(range(1000))),
    "state of a tensor": Raw(assemble(vector("0", 10)) + b"}b"),
    "state of a name": Raw(assemble(REBUILD) + b"}b"),
    "state that is no dict": Raw(assemble(Call(ORDERED_DICT, ())) + b"Nb"),
    "items of a tensor": Raw(assemble(vector("0", 10)) + b"NNs"),
    "items of a list": Raw(b"]NNs"),
    "elements of a tuple": Raw(b")Na"),
    "elements of a dict": Raw(b"}(Ne"),
    "half an item": Raw(b"}(Nu"),
    "a tuple as a key": {(1, 2): 3},
    "a truth value as a key": {True: 1},
    "a negative key": {-1: 1},
    "a name as a key": Raw(b"}" + assemble(FLOAT) + b"Ns"),
    "a parameter of nothing": Call(Global("torch._utils", "_rebuild_parameter"), (None, True, None)),
    "a parameter with a state": Call(Global("torch._utils", "_rebuild_parameter"), (vector("0", 10), True, {}, {})),
    "text that is no UTF-8": Raw(b"X\1\0\0\0\xff"),
    "surrogates": Raw(b"X\3\0\0\0\xed\xa0\x80"),
    "nothing on the stack": Raw(b""),
    "too little on the stack": Raw(b"N\x86"),
    "no mark": Raw(b"t"),
    "no memo": Raw(b"h\7"),
}


@pytest.mark.parametrize("root", OBJECTS.values(), ids=OBJECTS)
def test_other_objects_are_refused(path: Path, root: Any) -> None:
    write_checkpoint(path, root)
    assert "its pickle " in refused(path)


ALLOWED = """
    NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE MARK EMPTY_TUPLE TUPLE1
    TUPLE2 TUPLE3 TUPLE EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS BINPUT LONG_BINPUT MEMOIZE BINGET
    LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID PROTO FRAME STOP
"""


@pytest.mark.parametrize("number", set(range(256)) - {getattr(pickle, name)[0] for name in ALLOWED.split()})
def test_other_instructions_are_refused(number: int) -> None:
    """INST, OBJ, NEWOBJ, EXT1, LONG4 and PERSID among them."""
    code = bytes([number])
    for before in (b"", b"N", b"(NN", assemble(REBUILD) + b")"):
        with pytest.raises(ValueError, match="its pickle has the instruction"):
            Unpickler(BytesIO(b"\x80\2" + before + code + b"1\n1\n1111.")).load()


IDENTITIES: dict[str, Any] = {
    "text": "0",
    "no tuple": ["storage", FLOAT, "0", "cpu", 10],
    "too short": ("storage", FLOAT, "0", "cpu"),
    "too long": ("storage", FLOAT, "0", "cpu", 10, None, None),
    "a view": ("storage", FLOAT, "0", "cpu", 10, ("0", 0, 10)),
    "another word": ("module", FLOAT, "0", "cpu", 10),
    "a kind that is text": ("storage", "FloatStorage", "0", "cpu", 10),
    "a kind that is a function": ("storage", REBUILD, "0", "cpu", 10),
    "a path": ("storage", FLOAT, "../data.pkl", "cpu", 10),
    "no digits": ("storage", FLOAT, "", "cpu", 10),
    "two lines": ("storage", FLOAT, "0\n0", "cpu", 10),
    "a number as key": ("storage", FLOAT, 0, "cpu", 10),
    "no location": ("storage", FLOAT, "0", None, 10),
    "no length": ("storage", FLOAT, "0", "cpu", None),
    "a truth value as length": ("storage", FLOAT, "0", "cpu", True),
    "a negative length": ("storage", FLOAT, "0", "cpu", -10),
    "a huge length": ("storage", FLOAT, "0", "cpu", 1 << 62),
    "a longer length": ("storage", FLOAT, "0", "cpu", 11),
    "a shorter length": ("storage", FLOAT, "0", "cpu", 9),
    "another kind": ("storage", Global("torch", "DoubleStorage"), "0", "cpu", 10),
    "another file": ("storage", FLOAT, "1", "cpu", 10),
}


@pytest.mark.parametrize("identity", IDENTITIES.values(), ids=IDENTITIES)
def test_lies_about_a_storage_are_refused(path: Path, identity: Any) -> None:
    write_checkpoint(path, {"a": tensor(Persistent(identity), (1,), (1,))})
    assert "storage" in refused(path)


def test_one_storage_is_described_in_one_way(path: Path) -> None:
    write_checkpoint(path, {"a": vector("0", 10), "b": vector("0", 10, "IntStorage")})
    assert "in two ways" in refused(path)


TEN = storage("0", 10)
TENSORS: dict[str, Any] = {
    "beyond the end": tensor(TEN, (11,), (1,)),
    "beyond the end by its offset": tensor(TEN, (10,), (1,), 1),
    "beyond the end by a stride": tensor(TEN, (2, 2), (9, 1)),
    "repeated": tensor(TEN, (1000,), (0,)),
    "overlapping": tensor(TEN, (5, 5), (1, 1)),
    "a negative stride": tensor(TEN, (10,), (-1,), 9),
    "a negative offset": tensor(TEN, (1,), (1,), -1),
    "a negative size": tensor(TEN, (-1,), (1,)),
    "two negative sizes": tensor(TEN, (-2, -5), (5, 1)),
    "a size that overflows": tensor(TEN, (1 << 63, 2), (1, 1)),
    "a product that overflows": tensor(TEN, (1 << 32, 1 << 32), (0, 0)),
    "an empty one that overflows": tensor(TEN, (0, *[1 << 40] * 9), (1,) * 10),
    "a stride that overflows": tensor(TEN, (2,), (1 << 63,)),
    "a huge offset": tensor(TEN, (0,), (1,), 1 << 200),
    "many dimensions": tensor(TEN, (1,) * 100, (1,) * 100),
    "fewer strides": tensor(TEN, (2, 5), (1,)),
    "a list as sizes": tensor(TEN, [10], (1,)),
    "no sizes": tensor(TEN, None, (1,)),
    "text as a size": tensor(TEN, ("10",), (1,)),
    "a truth value as a size": tensor(TEN, (True,), (1,)),
    "no storage": tensor(None, (1,), (1,)),
    "a tensor as a storage": tensor(vector("0", 10), (1,), (1,)),
    "no arguments": Call(REBUILD, ()),
    "metadata": Call(REBUILD, (TEN, 0, (1,), (1,), False, {}, {"neg": True})),
    "a million arguments": Call(REBUILD, Raw(b"(" + b"N" * 300_000 + b"t")),
}


@pytest.mark.parametrize("value", TENSORS.values(), ids=TENSORS)
def test_tensors_that_cannot_be_are_refused(path: Path, value: Any) -> None:
    write_checkpoint(path, {"a": value})
    assert "its pickle has a tensor" in refused(path)


def test_a_stride_that_means_nothing_may_be_anything(path: Path) -> None:
    write_checkpoint(path, {"a": tensor(TEN, (1, 2, 1), (1 << 40, 3, 0), 2)})
    assert read(path)["a"].tolist() == [[[2.0], [5.0]]]


TUPLES_IN_TUPLES = b"\x86".join([b"Nq\0" + b"h\0", *[b"q\0h\0"] * 60]) + b"\x86"
BOMBS = {
    "memo": b"Nr\xff\xff\xff\xff.",
    "length of text": b"X\xff\xff\xff\xff.",
    "frame": b"\x95" + b"\xff" * 8 + b"N.",
    "integers of one hash": b"}(" + b"".join(assemble(n * ((1 << 61) - 1)) + b"N" for n in range(1, 90_000)) + b"u.",
    "tuple hashed in 2**60 steps": b"}" + TUPLES_IN_TUPLES + b"Ns.",
    "tuple in 2**60 places": TUPLES_IN_TUPLES + b".",
    "tuple of tuples, as a key": b"})" + b"\x85" * 300_000 + b"Ns.",
    "tuple of tuples": b")" + b"\x85" * 300_000 + b".",
    "list of lists": b"]" * 300_000 + b"a" * 300_000 + b".",
    "dict of itself": b"}q\0Nh\0sh\0.",
    "list of itself, as a name": b"]q\0h\0ah\0h\0\x93.",
    "tuple of tuples, as a name": b")" + b"\x85" * 300_000 + b"q\0h\0\x93.",
    "tuple of tuples, as an identity": b")" + b"\x85" * 300_000 + b"q\0(h\0h\0h\0h\0h\0tQ.",
    "marks": b"(" * 7_000_000,
    "dicts": b"}" * 7_000_000,
    "memos": b"N" + b"\x94" * 7_000_000,
    "long": b"N" * (9 << 20),
    "wide text": b"X" + struct.pack("<I", 7 << 20) + "😀".encode() * (7 << 18) + b".",
}


ENDLESS = ("memo", "length of text", "marks", "long")


def test_bombs_are_refused_in_little_memory(tmp_path: Path) -> None:
    """In a process that may not have more than a little, and in the older container too, which has no length."""
    header = pickled(0x1950A86A20F9469CFC6C) + pickled(1001) + pickled({})
    for name, code in BOMBS.items():
        write_archive(tmp_path / f"{name}.zip", b"\x80\2" + code, {})
        if name in ENDLESS:
            (tmp_path / f"{name}.stream").write_bytes(header + b"\x80\2" + code + bytes(20 << 20))
    program = """
for path in Path(sys.argv[1]).iterdir():
    try:
        with open_checkpoint(path):
            pass
    except CheckpointError as error:
        print(error)
"""
    assert len(printed(program, tmp_path, 120)) == len(BOMBS) + len(ENDLESS)


# ---------------------------------------------------------------- the archive


def test_what_is_compressed_is_refused(path: Path) -> None:
    for name in ("archive/data.pkl", "archive/data/0"):
        files = {"archive/data.pkl": pickled({"a": vector("0", 1 << 20)}), "archive/data/0": bytes(4 << 20)}
        with ZipFile(path, "w") as archive:
            for file, content in files.items():
                archive.writestr(file, content, ZIP_DEFLATED if file == name else None)
        assert "compressed" in refused(path)


def test_what_is_encrypted_is_refused(path: Path) -> None:
    write_checkpoint(path, {"a": vector("0", 10)})
    change_entry(path, "archive/data/0", {"flag_bits": 1})
    assert "encrypted" in refused(path)


LIES: dict[str, tuple[dict[str, Any], str]] = {
    "longer": ({"file_size": 41, "compress_size": 41}, ""),
    "unpacked to more": ({"file_size": 400}, "compressed"),
    "at another file": ({"header_offset": 200}, ""),
    "between files": ({"header_offset": 77}, "not where it should be"),
    "beyond the end": ({"header_offset": 1 << 40}, "not where it should be"),
    "beyond all ends": ({"header_offset": (1 << 64) - 1}, "not where it should be"),
    "of another sum": ({"CRC": 7}, "CRC"),
    "of no sum": ({"CRC": 0}, "CRC"),
    "compressed with something": ({"compress_type": 99}, "compressed"),
}


@pytest.mark.parametrize("name", ["archive/data.pkl", "archive/data/0"])
@pytest.mark.parametrize(("lie", "words"), LIES.values(), ids=LIES)
def test_lies_in_the_directory_are_refused(path: Path, name: str, lie: dict[str, Any], words: str) -> None:
    write_checkpoint(path, {"a": vector("0", 10)})
    change_entry(path, name, lie)
    assert words in refused(path)


def test_lengths_beyond_the_file_are_refused_even_where_all_agree(path: Path) -> None:
    write_checkpoint(path, {"a": vector("0", 1 << 38)})
    change_entry(path, "archive/data/0", {"file_size": 1 << 40, "compress_size": 1 << 40})
    assert "longer than the file" in refused(path)


def test_a_pickle_that_is_too_long_is_not_read(path: Path) -> None:
    write_archive(path, bytes(9 << 20), {})
    assert "its data.pkl has 9437184 bytes" in refused(path)
    text = b"X" + struct.pack("<I", 3 << 20) + bytes(3 << 20)
    path.write_bytes(b"\x80\2(" + 3 * text)
    assert "more than 8 MB" in refused(path)


def test_a_directory_that_fills_the_memory_is_refused(path: Path) -> None:
    with ZipFile(path, "w") as archive:
        for number in range(80):
            archive.writestr(f"{number:60000}", b"")
    assert "at once" in refused(path)


def test_two_files_of_one_name_are_refused(path: Path) -> None:
    for name in ("archive/data/0", "archive/data.pkl", "archive/data/0\0"):
        write_checkpoint(path, {"a": vector("0", 10)})
        with ZipFile(path, "a") as archive:
            archive.filelist.append(archive.getinfo(name.rstrip("\0")))
            archive.comment = b" "
        assert "two files of one name" in refused(path)


def test_a_checkpoint_has_one_pickle(path: Path) -> None:
    for names in (["data.pkl"], ["a/b/data.pkl"], ["a/data.pkl", "b/data.pkl"], ["a.onnx"]):
        with ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, pickled({}))
        assert "data.pkl" in refused(path)


def test_a_program_is_known_without_its_code(path: Path) -> None:
    write_checkpoint(path, {})
    with ZipFile(path, "a") as archive:
        archive.writestr("archive/constants.pkl", pickled(()))
    assert "TorchScript" in refused(path)


def test_a_byte_order_is_one_of_two(path: Path) -> None:
    for order in ("", "middle", "little" * 1000):
        write_archive(path, pickled({"a": vector("0", 10)}), {"0": bytes(40)}, order)
        assert "byte order" in refused(path)


# ---------------------------------------------------------------- damage


def several(path: Path) -> dict[str, Any]:
    state = {"a": vector("0", 10), "b": vector("1", 6), "c": tensor(storage("1", 6), (2, 2), (1, 3), 1)}
    storages = {"0": np.arange(10, dtype="<f4").tobytes(), "1": np.arange(6, dtype="<f4").tobytes()}
    write_archive(path, pickled({"epoch": 1, "state_dict": state}), storages)
    return {name: array.tolist() for name, array in read(path).items()}


def older(path: Path, numel: int = 3) -> None:
    def place(key: str, numel: int) -> Persistent:
        return Persistent(("storage", FLOAT, key, "cpu", numel, None))

    state = {"a": tensor(place("11", 10), (2, 5), (5, 1)), "b": tensor(place("7", numel), (3,), (1,))}
    pickles = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {"state_dict": state}, ["11", "7"]]
    elements = [struct.pack("<q10f", 10, *range(10)), struct.pack("<q3f", numel, 0, 1, 2)]
    path.write_bytes(b"".join([*map(pickled, pickles), *elements]))


def test_the_older_container_made_by_hand_is_read(path: Path) -> None:
    older(path)
    assert read(path)["a"].tolist() == [[0.0, 1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0, 9.0]]


OTHER_KEYS: list[Any] = [["11"], ["11", "11"], ["11", "8"], ["11", 7], ["11", []], ["11", "7", "7"], ["7", "11"], None]


@pytest.mark.parametrize("keys", OTHER_KEYS)
def test_the_older_container_has_the_storages_it_names(path: Path, keys: Any) -> None:
    older(path)
    content = path.read_bytes()
    assert content.count(assemble(["11", "7"])) == 1
    path.write_bytes(content.replace(assemble(["11", "7"]), assemble(keys)))
    assert "storage" in refused(path)


def test_the_older_container_has_no_lengths_beyond_the_file(path: Path) -> None:
    older(path, 1 << 38)
    assert "longer than the file" in refused(path)


@pytest.mark.parametrize("write", [several, older])
def test_a_file_cut_off_anywhere_is_refused(path: Path, write: Callable[[Path], object]) -> None:
    write(path)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        refused(path)


def test_a_changed_byte_changes_no_value(path: Path) -> None:
    """Every byte of a file with CRCs, one at a time: the right values or none."""
    expected = several(path)
    content = path.read_bytes()
    choose = random.Random(4)
    caught = 0
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= choose.randrange(1, 256)
        path.write_bytes(changed)
        try:
            assert {name: array.tolist() for name, array in read(path).items()} == expected, position
        except CheckpointError:
            caught += 1
    assert caught > len(content) // 3


def test_a_changed_byte_beside_what_is_read_is_found(path: Path) -> None:
    """Part of a storage is read only where all of it has the right sum; its last bytes are of no tensor here."""
    elements = np.arange(1 << 19, dtype="<f4").tobytes()
    write_archive(path, pickled({"a": tensor(storage("0", 1 << 19), (3,), (1,), 5)}), {"0": elements})
    assert read(path)["a"].tolist() == [5, 6, 7]
    content = path.read_bytes()
    assert content.count(elements[-8:]) == 1
    path.write_bytes(content.replace(elements[-8:], bytes(8)))
    assert "CRC" in refused(path)


@per_example
@given(st.data(), st.sampled_from([several, older]))
def test_changed_bytes_raise_no_other_error(tmp_path: Path, data: st.DataObject, write: Callable[[Path], Any]) -> None:
    path = tmp_path / "changed.pt"
    write(path)
    changed = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(changed)
    try:
        read(path)
    except CheckpointError:
        return


# ---------------------------------------------------------------- memory


def test_reading_takes_the_memory_of_one_tensor(tmp_path: Path) -> None:
    """12 tensors of 8 MB, and 4 views of one storage of 32 MB, in a process that may take 16 MB."""
    path = tmp_path / "large.pt"
    numel = 2 << 20
    state = {str(number): vector(str(number), numel) for number in range(12)}
    shared = storage("99", 4 * numel)
    state |= {f"view {number}": tensor(shared, (numel,), (1,), number * numel) for number in range(4)}
    elements = {str(number): bytes(4 * numel) for number in range(12)}
    write_archive(path, pickled({"state_dict": state}), {**elements, "99": bytes(16 * numel)})
    program = """
with open_checkpoint(Path(sys.argv[1])) as checkpoint:
    for name in checkpoint.shapes:
        print(checkpoint.read(name).nbytes)
"""
    assert printed(program, path, 16) == 16 * [str(4 * numel)]
    all_at_once = """
with open_checkpoint(Path(sys.argv[1])) as checkpoint:
    everything = [checkpoint.read(name) for name in checkpoint.shapes]
"""
    with pytest.raises(AssertionError, match="MemoryError"):
        printed(all_at_once, path, 16)
