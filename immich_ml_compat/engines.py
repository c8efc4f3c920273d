"""Makes the engine that was chosen; no other engine's library is loaded."""

import logging
from dataclasses import replace
from functools import partial
from importlib.metadata import version

from .engine import EngineError
from .engine.scheduler import EngineOf, ScheduledEngine, Scheduler
from .engine_choice import Choice, Precision, refusal
from .machine import available_cores, cpu_kind
from .settings import Settings

COMPILED = ".compiled"
"""The folder, inside the cache folder, of graphs as engines optimised or compiled them, by engine and version."""

MAX_GPU_BATCH = 32

MOST_THREADS = 16
"""For one run of a graph. A guess: nothing above 2 cores was measured."""

log = logging.getLogger(__name__)


def make_engine(choice: Choice, settings: Settings, device_id: int = 0) -> ScheduledEngine:
    """Make the engine, and log the choice. Raises ConfigurationError where it does not work on this machine."""
    scheduler = make_scheduler(choice, settings, available_cores())
    try:
        engine_of = _MAKERS[choice.engine](choice, settings, device_id, scheduler)
    except (EngineError, ImportError) as error:
        if not _may_give_way(choice, settings):
            raise refusal(settings, str(error)) from error
        what = "the GPU" if choice.device == "cuda" else "OpenVINO"
        plain = Choice("onnxruntime", "cpu", "fp32", f"{what} does not work here: {error}")
        return make_engine(plain, settings, device_id)
    log.info("Models run in %s", choice)
    return ScheduledEngine(scheduler, engine_of)


def _may_give_way(choice: Choice, settings: Settings) -> bool:
    """Whether another engine may take the place of one that does not work: nobody asked for this one."""
    if choice.device == "cuda":
        return settings.device == "auto"
    asked = settings.engine, settings.precision, settings.device
    return choice.engine == "openvino" and asked in (("auto", "auto", "auto"), ("auto", "auto", "cpu"))


def make_scheduler(choice: Choice, settings: Settings, cores: int) -> Scheduler:
    """Make the scheduler for a machine of that many cores."""
    if choice.device != "cpu":
        return Scheduler(1, 1, 1, max_batch=MAX_GPU_BATCH if choice.device == "cuda" else 1)
    cores = max(1, cores // (settings.workers * len(settings.device_ids)))
    if settings.model_intra_op_threads:
        threads = min(settings.model_intra_op_threads, cores)
        return Scheduler(cores, threads, threads)
    return Scheduler(cores, 1, min(cores, MOST_THREADS))


def _onnxruntime(choice: Choice, settings: Settings, device_id: int, scheduler: Scheduler) -> EngineOf:
    from .engine import onnxruntime
    from .engine.optimized import OptimizedGraphs

    device: onnxruntime.Device = "cpu"
    if choice.device == "cuda":  # not asked for it goes on without, and warns, where CUDA does not work
        device = "auto" if settings.device == "auto" else "cuda"
    kept = settings.cache_folder / COMPILED / f"onnxruntime-{onnxruntime.VERSION}-{cpu_kind()}"
    engine = onnxruntime.OnnxRuntimeEngine(
        device,
        device_id,
        inter_op_threads=settings.model_inter_op_threads,
        arena=settings.model_arena,
        optimized=OptimizedGraphs(kept) if choice.device == "cpu" else None,
    )
    engine.check()
    return lambda threads: replace(engine, intra_op_threads=threads)


def _openvino(choice: Choice, settings: Settings, device_id: int, scheduler: Scheduler) -> EngineOf:
    from .engine.full_precision import RetryInFull
    from .engine.openvino import OpenVinoEngine

    on_gpu = choice.device == "openvino-gpu"
    compiled = settings.cache_folder / COMPILED / f"openvino-{version('openvino')}" if on_gpu else None

    def engine(precision: Precision, threads: int) -> OpenVinoEngine:
        runs = scheduler.cores // threads
        return OpenVinoEngine(f"GPU.{device_id}" if on_gpu else "CPU", precision, threads * runs, runs, compiled)

    engine(choice.precision, 1).check()
    if choice.precision == "fp32":
        return partial(engine, "fp32")
    full: EngineOf = partial(engine, "fp32")
    if settings.engine == "auto" and not on_gpu:  # what fails in one engine may work in the other
        full = _onnxruntime(Choice("onnxruntime", "cpu", "fp32", ""), settings, device_id, scheduler)
    return lambda threads: RetryInFull(engine(choice.precision, threads), full(threads))


_MAKERS = {"onnxruntime": _onnxruntime, "openvino": _openvino}
