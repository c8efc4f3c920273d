"""Makes the engine that was chosen; no other engine's library is loaded."""

import logging
from importlib.metadata import version

from .engine import Engine, EngineError
from .engine_choice import Choice, Precision, refusal
from .machine import available_cores
from .settings import Settings

COMPILED = ".compiled"
"""The folder, inside the cache folder, of what OpenVINO compiled for a GPU, by version."""

log = logging.getLogger(__name__)


def make_engine(choice: Choice, settings: Settings, device_id: int = 0) -> Engine:
    """Make the engine, and log the choice. Raises ConfigurationError where it does not work on this machine."""
    make = _onnxruntime if choice.engine == "onnxruntime" else _openvino
    try:
        engine = make(choice, settings, device_id)
    except (EngineError, ImportError) as error:
        raise refusal(settings, str(error)) from error
    log.info("Models run in %s", choice)
    return engine


def _onnxruntime(choice: Choice, settings: Settings, device_id: int) -> Engine:
    from .engine import onnxruntime

    device: onnxruntime.Device = "cpu"
    if choice.device == "cuda":  # not asked for it goes on without, and warns, where CUDA does not work
        device = "auto" if settings.device == "auto" else "cuda"
    engine = onnxruntime.OnnxRuntimeEngine(
        device,
        device_id,
        settings.model_intra_op_threads,
        settings.model_inter_op_threads,
        settings.model_arena,
    )
    engine.check()
    return engine


def _openvino(choice: Choice, settings: Settings, device_id: int) -> Engine:
    from .engine.full_precision import RetryInFull
    from .engine.openvino import OpenVinoEngine

    cores = max(1, available_cores() // settings.workers)
    streams = min(settings.model_inter_op_threads or 1, cores)
    threads = min(settings.model_intra_op_threads * streams or cores, cores)
    on_gpu = choice.device == "openvino-gpu"

    def engine(precision: Precision) -> OpenVinoEngine:
        return OpenVinoEngine(
            f"GPU.{device_id}" if on_gpu else "CPU",
            precision,
            threads,
            streams,
            settings.cache_folder / COMPILED / f"openvino-{version('openvino')}" if on_gpu else None,
        )

    chosen = engine(choice.precision)
    chosen.check()
    return chosen if choice.precision == "fp32" else RetryInFull(chosen, engine("fp32"))
