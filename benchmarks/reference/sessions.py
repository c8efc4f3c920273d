"""ONNX Runtime as the stock server sets it up on a CPU."""

from pathlib import Path

import onnxruntime as ort


def load(graph: Path) -> ort.InferenceSession:
    """Load a graph: two threads inside an operator, one operator at a time, the memory arena on."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = True
    options.log_severity_level = 3  # a line for each run of a graph whose shape hints are off would cost time
    providers = [("CPUExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"})]
    return ort.InferenceSession(graph.as_posix(), options, providers=providers)
