"""OpenVINO as an engine, on the CPU or on Intel graphics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

import numpy as np
import openvino as ov
from openvino import frontend

from ..disk import can_write
from ..memory import release_pages
from . import Array, EngineError, OneByOne, TensorInfo, engine_error
from .outline import outline

Precision = Literal["fp32", "bf16", "fp16"]

# How many compiled kernels, of one operator and one input shape each, a stream keeps; others are made anew. In 800
# runs of PP-OCRv6's recogniser at random widths memory grew by 330 MB with OpenVINO's own 5000, by 100 MB with this.
_KEPT_KERNELS = 1000

# The bindings raise these for everything; the frontend's have no base class of their own.
_ERRORS = (
    RuntimeError,
    frontend.GeneralFailure,
    frontend.InitializationFailure,
    frontend.NotImplementedFailure,
    frontend.OpConversionFailure,
    frontend.OpValidationFailure,
)

_DTYPES: dict[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "f64": np.dtype(np.float64),
    "i32": np.dtype(np.int32),
    "i64": np.dtype(np.int64),
    "u8": np.dtype(np.uint8),
    "boolean": np.dtype(np.bool_),
}

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
"""OpenVINO's names of the precisions; the hardware's capabilities are called as ours, in capitals."""


@dataclass(frozen=True)
class OpenVinoEngine:
    """Loads graphs into OpenVINO, in exactly the precision that is asked for."""

    device: str = "CPU"
    """By OpenVINO's name: `CPU`, or `GPU.0` and so on for Intel graphics."""

    precision: Precision = "fp32"
    threads: int = 0
    """Threads of a graph on the CPU, those of all its streams together; 0: OpenVINO's own choice."""

    streams: int = 1
    """Runs of one graph side by side; further ones wait."""

    compiled: Path | None = None
    """A folder to keep compiled graphs in, made where it is not there; one that cannot be is done without."""

    @cached_property
    def _core(self) -> ov.Core:
        return ov.Core()

    def available_devices(self) -> dict[str, list[str]]:
        """Return the devices that OpenVINO can use here, and what each is optimised for, by OpenVINO's names."""
        return {device: self._capabilities(device) for device in self._core.available_devices}

    def check(self) -> None:
        """Raise EngineError where this machine has no such device or precision."""
        try:
            capabilities = self._capabilities(self.device)
        except _ERRORS as error:
            raise EngineError(f"OpenVINO cannot use the {self.device}: {_cause(error)}") from error
        if self.precision.upper() not in capabilities:
            raise EngineError(f"OpenVINO has no {self.precision} on this {self.device}, only {', '.join(capabilities)}")

    def load(self, path: Path) -> "OpenVinoSession":
        """Load the graph at `path`, external data beside it included. Raises EngineError."""
        try:
            with outline(path) as graph:
                model = _read(path, graph)
                compiled = self._core.compile_model(model, self.device, self._properties())
        except (*_ERRORS, OSError) as error:
            raise engine_error(path, _cause(error)) from error
        found = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if found != _HINTS[self.precision]:
            raise EngineError(f"{path}: OpenVINO would run it in {found} on the {self.device}, not {self.precision}")
        return OpenVinoSession(path, model, compiled, _provider(self.device, found))

    def release(self) -> None:
        """A graph's memory goes with the graph."""

    def _capabilities(self, device: str) -> list[str]:
        capabilities: list[str] = self._core.get_property(device, "OPTIMIZATION_CAPABILITIES")
        return capabilities

    def _properties(self) -> dict[str, Any]:
        properties: dict[str, Any] = {"INFERENCE_PRECISION_HINT": _HINTS[self.precision], "NUM_STREAMS": self.streams}
        if self.device == "CPU":
            # Pinned, the threads of all graphs and processes would share the first cores.
            properties |= {"ENABLE_CPU_PINNING": False, "CPU_RUNTIME_CACHE_CAPACITY": _KEPT_KERNELS}
            properties |= {"INFERENCE_NUM_THREADS": self.threads} if self.threads else {}
        if self.compiled is not None and can_write(self.compiled):
            properties["CACHE_DIR"] = str(self.compiled)
        return properties


class OpenVinoSession(OneByOne):
    """One graph in OpenVINO."""

    def __init__(self, path: Path, model: ov.Model, compiled: ov.CompiledModel, execution_provider: str) -> None:
        """`model` is what was compiled: the compiled graph's tensors bear names of others beside their own."""
        self._path = path
        self.inputs: Sequence[TensorInfo] = [_info(path, port) for port in model.inputs]
        self.outputs: Sequence[TensorInfo] = [_info(path, port) for port in model.outputs]
        self.execution_provider = execution_provider
        self.metadata: Mapping[str, str] = _metadata(model)
        self._requests: SimpleQueue[ov.InferRequest] = SimpleQueue()
        for _ in range(max(1, compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))):
            self._requests.put(compiled.create_infer_request())
        self._packed_for: set[tuple[int, ...]] = set()
        release_pages(path.parent)

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Run the graph once and return its outputs in order. Raises EngineError."""
        self._check(inputs)
        request = self._requests.get()
        try:
            # The outputs are copies: the request's own memory is the next run's.
            outputs: list[Array] = list(request.infer(dict(inputs), share_inputs=True).to_tuple())
        except _ERRORS as error:
            raise engine_error(self._path, _cause(error)) from error
        finally:
            self._requests.put(request)
        self._release_weights(tuple(length for values in inputs.values() for length in values.shape[:1]))
        return outputs

    def _release_weights(self, batch_size: tuple[int, ...]) -> None:
        """A graph with free axes packs its weights while it runs, and not the same for one item as for several."""
        if batch_size not in self._packed_for:
            self._packed_for.add(batch_size)
            release_pages(self._path.parent)

    def _check(self, inputs: Mapping[str, Array]) -> None:
        """OpenVINO takes the values of an earlier run for an input left out, and casts one of another dtype."""
        wanted = {info.name: info.dtype for info in self.inputs}
        given = {name: values.dtype for name, values in inputs.items()}
        if given != wanted:
            described = (", ".join(f"{name} {dtype}" for name, dtype in each.items()) for each in (wanted, given))
            raise EngineError("{}: takes {}, was given {}".format(self._path, *described))


def _read(path: Path, graph: Path) -> ov.Model:
    """Read `graph`, lent for `path`. OpenVINO's own reader would try a damaged one as every other format too."""
    onnx = frontend.FrontEndManager().load_by_framework("onnx")
    model = onnx.convert(onnx.load(str(graph)))
    if not model.outputs:
        raise EngineError(f"{path}: is no ONNX graph, it has no output")
    return model


def _info(path: Path, port: Any) -> TensorInfo:
    name, kind, shape = port.get_any_name(), port.element_type.get_type_name(), port.partial_shape
    if kind not in _DTYPES:
        raise EngineError(f"{path}: {name} is a {kind}, which no model of these tasks has")
    axes = () if shape.rank.is_dynamic else tuple(None if axis.is_dynamic else axis.get_length() for axis in shape)
    return TensorInfo(name, _DTYPES[kind], axes)


def _metadata(model: ov.Model) -> dict[str, str]:
    """The ONNX file's `metadata_props`, which the frontend puts under this name."""
    info = model.get_rt_info()
    return {name: value.astype(str) for name, value in info["framework"].items()} if "framework" in info else {}


def _provider(device: str, precision: str) -> str:
    return f"OpenVINO {device} ({precision})"


def _cause(error: BaseException) -> str:
    """The lines of OpenVINO's message that are not about its own source code, as one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    noise = ("Exception from ", "Check '", "FrontEnd API failed", "Summary:")
    return "; ".join([line for line in lines if not line.startswith(noise)] or lines[-1:])
