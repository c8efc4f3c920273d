"""The engines at hand, with nothing around them: a graph loaded for so many streams, and a function that runs it."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from threading import local
from typing import Any

Run = Callable[[Any], Any]
Load = Callable[[Path, int, int], Run]
"""Takes a graph, how many runs there are side by side, and the cores that they share."""


def engines() -> dict[str, Load]:
    """Return every engine that is installed."""
    found: dict[str, Load] = {"ONNX Runtime": _onnxruntime}
    if find_spec("openvino") is not None:
        found["OpenVINO"] = _openvino
    return found


def _onnxruntime(graph: Path, streams: int, cores: int) -> Run:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = max(1, cores // streams)
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda values: session.run(None, {name: values})


def _openvino(graph: Path, streams: int, cores: int) -> Run:
    """OpenVINO's own choice of precision: bf16 where the CPU has it."""
    import openvino

    settings = {"NUM_STREAMS": str(streams), "INFERENCE_NUM_THREADS": str(cores)}
    model = openvino.Core().compile_model(str(graph), "CPU", settings)
    own = local()

    def run(values: Any) -> Any:
        if not hasattr(own, "request"):
            own.request = model.create_infer_request()
        return own.request.infer([values], share_inputs=True)

    return run
