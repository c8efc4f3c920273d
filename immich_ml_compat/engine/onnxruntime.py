"""ONNX Runtime as an engine, on the CPU, an NVIDIA GPU, or by its OpenVINO provider on Intel graphics."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from ..disk import can_write
from ..memory import release
from . import Array, EngineError, EngineMemoryError, OneByOne, TensorInfo, engine_error
from .derived import DATA_SUFFIX, DerivedGraphs, trial
from .onnx_file import block, varint
from .packed_weights import align_weights
from .simpler import REWRITING_ERRORS, simpler

log = logging.getLogger(__name__)

VERSION = ort.__version__

FORM = "simpler2"
"""Names what graphs are rewritten to: another one for every change of that, so that forms on disk are made anew."""

Device = Literal["auto", "cpu", "cuda", "openvino-gpu"]

_CPU, _CUDA, _OPENVINO = "CPUExecutionProvider", "CUDAExecutionProvider", "OpenVINOExecutionProvider"

_BUILDS = {_CUDA: "onnxruntime-gpu", _OPENVINO: "onnxruntime-openvino"}
"""The packages that have these providers; only one build of ONNX Runtime can be installed at a time."""

_REMEDIES = {
    _CUDA: "docs/deployment.md tells which GPUs and drivers can, for others there is the CPU image",
    _OPENVINO: "it needs Intel graphics and their driver; name another one in MACHINE_LEARNING_DEVICE_IDS, or take "
    "MACHINE_LEARNING_DEVICE=cpu",
}

_OPENVINO_DEVICE = "GPU.{}"
"""OpenVINO's name of a device, by its number. Tests take its `CPU`, with which the provider works as well."""

# Where the threads are left to the engine: two, as in the stock server, so that a small machine stays usable.
_DEFAULT_INTRA_OP_THREADS = 2
_DEFAULT_INTER_OP_THREADS = 1

# ONNX Runtime's exceptions share no base class of their own, and some builds have more of them than others.
_ERRORS: tuple[type[Exception], ...] = tuple(
    error for error in vars(ort_errors).values() if isinstance(error, type) and issubclass(error, Exception)
)
_ERRORS_OR_OURS: tuple[type[Exception], ...] = (EngineError, *_ERRORS)

_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(bool)": np.dtype(np.bool_),
}


@dataclass(frozen=True)
class OnnxRuntimeEngine:
    """Loads graphs into ONNX Runtime sessions. Thread counts of 0 mean the engine's own choice.

    `auto` takes the GPU where this build of ONNX Runtime has CUDA and the CPU otherwise; any other device is an error
    where it cannot be had.
    """

    device: Device = "auto"
    device_id: int = 0
    intra_op_threads: int = 0
    inter_op_threads: int = 0
    arena: bool = True
    optimized: DerivedGraphs | None = None
    """Where optimised graphs are kept, for the CPU."""

    precision: Literal["fp32", "fp16"] = "fp32"
    """In which OpenVINO's provider computes; the others compute in the graph's own."""

    compiled: Path | None = None
    """A folder in which OpenVINO's provider keeps what it has compiled."""

    def available_providers(self) -> list[str]:
        """Return the execution providers of this build of ONNX Runtime, best first."""
        providers: list[str] = ort.get_available_providers()
        return providers

    @property
    def execution_provider(self) -> str:
        """The execution provider that sessions ask for. Raises EngineError where the device is not in this build."""
        if self.device == "cpu" or (self.device == "auto" and _CUDA not in self.available_providers()):
            return _CPU
        provider = _OPENVINO if self.device == "openvino-gpu" else _CUDA
        if provider not in self.available_providers():
            build = f"This build of ONNX Runtime ({ort.__version__}) has no {_title(provider)}"
            raise EngineError(f"{build}: in place of it install {_BUILDS[provider]}")
        return provider

    def check(self) -> None:
        """Raise EngineError where the device is not in this build of ONNX Runtime, or a GPU cannot compute with it."""
        provider = self.execution_provider
        if provider == _CPU:
            return
        try:
            asked = replace(self, device="cuda") if provider == _CUDA else self
            session = asked._session(Path("trial.onnx"), self._options(), _TRIAL)
            if provider == _OPENVINO:
                session = asked._session(Path("trial.onnx"), self._options(), _TRIAL, whole=True)
            session.run(None, {_INPUT: np.ones((1, 1, 1, 1), np.float32)})
        except _ERRORS_OR_OURS as error:
            kind = f"{_title(provider)} {getattr(ort, 'cuda_version', '') if provider == _CUDA else ''}".rstrip()
            raise EngineError(
                f"GPU {self.device_id} cannot be used by ONNX Runtime {ort.__version__} for {kind}: "
                f"{' '.join(str(error).split())}; {_REMEDIES[provider]}"
            ) from error

    def load(self, path: Path) -> "OnnxRuntimeSession":
        """Load the graph at `path`, external data beside it included. Raises EngineError."""
        session = None
        if self.optimized is not None and self.execution_provider == _CPU:
            session = self.optimized.load(path, partial(self._write, path), self._optimized_session)
        if self.execution_provider == _OPENVINO:
            return OnnxRuntimeSession(path, self._session_in_openvino(path), f"{_OPENVINO} ({self.precision})")
        return OnnxRuntimeSession(path, session or self._session(path, self._options()))

    def release(self) -> None:
        """Have the CPU's arena give back what no tensor lies in: a run of any graph can ask it to.

        What runs elsewhere took stays with the session.
        """
        if not self.arena or self.execution_provider != _CPU:
            return
        options = ort.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        try:
            session = ort.InferenceSession(_SMALLEST, self._options(), providers=[_CPU])
            session.run(None, {_INPUT: np.ones(1, np.float32)}, options)
        except _ERRORS as error:  # no memory, no thread: another time
            log.warning("Memory is not given back now, and will be tried again: %s", error)

    def fold(self, path: Path, target: Path, lengths: Mapping[str, int]) -> "OnnxRuntimeSession":
        """Write the graph at `path` to `target` with what is constant in it computed, and return it loaded.

        Free axes may be given lengths by their names. Raises EngineError.
        """
        options = self._options()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        _keep_optimized(options, target)
        options.add_session_config_entry("session.disable_prepacking", "1")  # the weights are written as they were
        for name, length in lengths.items():
            options.add_free_dimension_override_by_name(name, length)
        return OnnxRuntimeSession(path, self._session(path, options))

    def _options(self) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.intra_op_threads or _DEFAULT_INTRA_OP_THREADS
        options.inter_op_num_threads = self.inter_op_threads or _DEFAULT_INTER_OP_THREADS
        if options.inter_op_num_threads > 1:
            options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
        options.enable_cpu_mem_arena = self.arena
        if self.arena:
            _make_arena()
            options.add_session_config_entry("session.use_env_allocators", "1")
        options.enable_mem_pattern = False  # it keeps a plan for every shape that ever came
        options.log_severity_level = 3  # its warnings are about the exporter's shape hints, not about us
        # Threads wait for each other by spinning, which is fast; between two runs they would only burn a core, and
        # longer than this where another program has the core of the one that is waited for.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_US)
        return options

    def _write(self, path: Path, target: Path) -> None:
        """Write the graph at `path` to `target` as it is optimised for this CPU, its packed weights beside it.

        Raises EngineError, OSError, LookupError or ValueError where that cannot be, or gives other results.
        """
        try:
            graph = simpler(path)
            if graph is not None:
                return self._write_form(path, target, graph)
        except (EngineMemoryError, OSError):
            raise
        except (EngineError, ImportError, *REWRITING_ERRORS) as error:
            log.info("%s is optimised as it is: %s", path, error)
        return self._write_form(path, target)

    def _write_form(self, path: Path, target: Path, graph: bytes | None = None) -> None:
        """Write the optimised form of the graph at `path`, made from `graph` where that is to give the same."""
        expected = None if graph is None else _try_out(path, self._session(path, self._options()))
        options = self._options()
        _keep_optimized(options, target)
        options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
        session = self._session(path, options, graph)
        data = target.with_name(target.name + DATA_SUFFIX)
        if data.is_file():
            align_weights(target, data)
        expected = expected or _try_out(path, session)
        del session  # a large model is not to be in memory twice
        release()
        if not all(map(_close, expected, _try_out(path, self._optimized_session(target)))):
            raise EngineError(f"{path}: its optimised form on disk gives other results")

    def _optimized_session(self, form: Path) -> ort.InferenceSession:
        options = self._options()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # it was done
        return self._session(form, options)

    def _session_in_openvino(self, path: Path) -> ort.InferenceSession:
        """Its provider need not take all of a graph; what it leaves to the CPU is not to go unnoticed."""
        try:
            return self._session(path, self._options(), whole=True)
        except EngineMemoryError:
            raise
        except EngineError as error:
            session = self._session(path, self._options())
            log.warning("A part of the graph runs on the CPU, as OpenVINO's provider does not take it: %s", error)
            return session

    def _session(
        self, path: Path, options: ort.SessionOptions, graph: bytes | None = None, *, whole: bool = False
    ) -> ort.InferenceSession:
        """`graph` is what is loaded in place of the file at `path`, and may have weights in the same folder.

        Where it is to run there as a `whole`, it is an error if the provider leaves any of it to the CPU.
        """
        provider = self.execution_provider
        if provider == _CUDA:
            ort.preload_dlls()  # finds the CUDA libraries that came as wheels
        if graph is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        providers: dict[str, dict[str, Any]] = {provider: self._provider_options(provider)}
        if whole:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        else:
            providers[_CPU] = {}
        try:
            session = ort.InferenceSession(graph or path, options, providers=list(providers.items()))
        except _ERRORS as error:
            raise engine_error(path, str(error)) from error
        self._check_provider(provider, session.get_providers())
        session.disable_fallback()  # to the CPU, in the middle of things, where a run fails
        return session

    def _provider_options(self, provider: str) -> dict[str, Any]:
        """https://onnxruntime.ai/docs/execution-providers: those of CUDA and of OpenVINO."""
        if provider == _CUDA:
            return {"device_id": self.device_id}
        if provider != _OPENVINO:
            return {}
        options = {"device_type": _OPENVINO_DEVICE.format(self.device_id), "precision": self.precision.upper()}
        return options | ({"cache_dir": str(self.compiled)} if self.compiled and can_write(self.compiled) else {})

    def _check_provider(self, wanted: str, given: Sequence[str]) -> None:
        """ONNX Runtime falls back to the CPU with no more than a line on stderr."""
        if wanted in given:
            return
        message = f"{wanted} could not be used (driver, CUDA or cuDNN missing?)"
        if wanted == _OPENVINO:
            message = f"{wanted} could not be used in {self.precision} (no driver, no device, or no such precision?)"
        if self.device != "auto":
            raise EngineError(message)
        log.warning("%s; running on the CPU", message)


class OnnxRuntimeSession(OneByOne):
    """One graph in ONNX Runtime."""

    def __init__(self, path: Path, session: ort.InferenceSession, execution_provider: str | None = None) -> None:
        """`execution_provider` is what it is called, where its own name does not say all."""
        self._path = path
        self._session = session
        self.inputs: Sequence[TensorInfo] = [_info(path, node) for node in session.get_inputs()]
        self.outputs: Sequence[TensorInfo] = [_info(path, node) for node in session.get_outputs()]
        self.execution_provider: str = execution_provider or session.get_providers()[0]
        self.metadata: Mapping[str, str] = session.get_modelmeta().custom_metadata_map

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Run the graph once and return its outputs in order. Raises EngineError."""
        try:
            outputs: list[Array] = self._session.run(None, dict(inputs))
        except _ERRORS as error:
            raise engine_error(self._path, str(error)) from error
        return outputs


_MOST_DEAD_BYTES = 1 << 20
"""What may lie idle behind a tensor before the rest of its place is given to another. ONNX Runtime's 128 MiB cost 40 to
60 MB with all three tasks loaded, and made nothing faster."""

_SPIN_US = "100"
"""Left to spin for as long as ONNX Runtime does, two threads beside one other busy program took ten times as long for a
photo; on an idle machine this is as fast, and none at all is slower (benchmarks/RESULTS.md)."""

_INPUT = "x"


def _graph(rank: int, *operators: str) -> bytes:
    """An ONNX file: one number goes through operators of two inputs, each given what the last made and the number."""
    number = block(2, block(1, varint(1 << 3) + varint(1)) * rank)
    number = block(1, varint(1 << 3) + varint(1) + number)
    names = [_INPUT, *(f"{operator}{place}" for place, operator in enumerate(operators))]
    nodes = b"".join(
        block(
            1, block(1, given.encode()) + block(1, _INPUT.encode()) + block(2, made.encode()) + block(4, what.encode())
        )
        for given, made, what in zip(names, names[1:], operators, strict=False)
    )
    ends = ((11, names[0]), (12, names[-1]))
    values = b"".join(block(field, block(1, name.encode()) + block(2, number)) for field, name in ends)
    graph = nodes + block(2, b"g") + values
    return varint(1 << 3) + varint(8) + block(7, graph) + block(8, varint(2 << 3) + varint(17))


_SMALLEST = _graph(1, "Add")

_TRIAL = _graph(4, "Conv", "MatMul", "Add")
"""What needs cuDNN, cuBLAS and a kernel of ONNX Runtime's own."""


def _title(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")


@cache
def _make_arena() -> None:
    """Give ONNX Runtime one arena for the sessions of this process: what one has done with, another can use."""
    cpu = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(cpu, ort.OrtArenaCfg(0, -1, -1, _MOST_DEAD_BYTES))


def _keep_optimized(options: ort.SessionOptions, target: Path) -> None:
    """Have a session write its graph to `target`, and what of it is large to a file beside that."""
    options.optimized_model_filepath = str(target)
    for name, value in (("file_name", target.name + DATA_SUFFIX), ("min_size_in_bytes", "1024")):
        options.add_session_config_entry(f"session.optimized_model_external_initializers_{name}", value)


def _try_out(path: Path, session: ort.InferenceSession) -> list[Array]:
    """Run the graph at `path` on what it is tried with. Raises EngineError."""
    try:
        outputs: list[Array] = session.run(None, trial([_info(path, node) for node in session.get_inputs()]))
    except _ERRORS as error:
        raise engine_error(path, str(error)) from error
    return outputs


def _close(expected: Array, found: Array) -> bool:
    return expected.shape == found.shape and np.allclose(expected, found, rtol=1e-3, atol=1e-4, equal_nan=True)


def _info(path: Path, node: Any) -> TensorInfo:
    try:
        dtype = _DTYPES[node.type]
    except KeyError:
        raise EngineError(f"{path}: {node.name} is a {node.type}, which no model of these tasks has") from None
    return TensorInfo(node.name, dtype, tuple(axis if isinstance(axis, int) else None for axis in node.shape))
