"""Makes the engine that was chosen; no other engine's library is loaded."""

import logging
from dataclasses import replace
from functools import partial
from importlib.metadata import version

from .compiled import compiled_folder
from .engine import EngineError
from .engine.scheduler import EngineOf, ScheduledEngine, Scheduler
from .engine_choice import Choice, Device, EngineName, Precision, refusal
from .machine import available_cores, cpu_kind
from .settings import Settings

MAX_GPU_BATCH = 32

MOST_THREADS = 16
"""For one run of a graph; more cores are shared evenly by several. A guess: nothing above 2 cores was measured."""

_PLAIN: tuple[EngineName, Device, Precision] = "onnxruntime", "cpu", "fp32"
"""What works everywhere."""

log = logging.getLogger(__name__)


def make_engine(choice: Choice, settings: Settings, device_id: int = 0) -> ScheduledEngine:
    """Make the engine, and log the choice. Raises ConfigurationError where it does not work on this machine."""
    scheduler = make_scheduler(choice, settings, available_cores())
    try:
        engine_of = _MAKERS[choice.engine](choice, settings, device_id, scheduler)
    except (EngineError, ImportError) as error:
        asked = (settings.engine, settings.device, settings.precision)
        allowed = all(each in ("auto", got) for each, got in zip(asked, _PLAIN, strict=True))
        if not allowed or (choice.engine, choice.device, choice.precision) == _PLAIN:
            raise refusal(settings, str(error)) from error
        what = "the GPU" if choice.device == "cuda" else "OpenVINO"
        plain = Choice(*_PLAIN, f"{what} does not work here: {error}")
        return make_engine(plain, settings, device_id)
    log.info("Models run in %s", choice)
    return ScheduledEngine(scheduler, engine_of)


def make_scheduler(choice: Choice, settings: Settings, cores: int) -> Scheduler:
    """Make the scheduler for a machine of that many cores."""
    cores = max(1, cores // (settings.workers * len(settings.device_ids)))
    if choice.device != "cpu":
        return Scheduler(1, 1, 1, max_batch=MAX_GPU_BATCH if choice.device == "cuda" else 1, cpu_cores=cores)
    if settings.model_intra_op_threads:
        threads = min(settings.model_intra_op_threads, cores)
        return Scheduler(cores, threads, threads)
    return Scheduler(cores, 1, cores // -(-cores // MOST_THREADS))


def _onnxruntime(choice: Choice, settings: Settings, device_id: int, scheduler: Scheduler) -> EngineOf:
    from .engine import onnxruntime
    from .engine.derived import DerivedGraphs

    engine = onnxruntime.OnnxRuntimeEngine(
        choice.device,
        device_id,
        inter_op_threads=settings.model_inter_op_threads,
        arena=settings.model_arena,
    )
    if choice.device == "cpu":
        kind = f"onnxruntime-{onnxruntime.VERSION}-{onnxruntime.FORM}-{cpu_kind()}"
        engine = replace(engine, optimized=DerivedGraphs(compiled_folder(settings.cache_folder, kind)))
    if choice.device == "openvino-gpu":
        kept = compiled_folder(settings.cache_folder, f"onnxruntime-{onnxruntime.VERSION}-openvino")
        engine = replace(engine, compiled=kept, precision="fp16" if choice.precision == "fp16" else "fp32")
    engine.check()
    if choice.precision == "fp32":
        return lambda threads: replace(engine, intra_op_threads=threads)
    if choice.device == "openvino-gpu":
        from .engine.full_precision import RetryInFull

        full = replace(engine, precision="fp32")
        return lambda threads: RetryInFull(
            replace(engine, intra_op_threads=threads), replace(full, intra_op_threads=threads)
        )

    from .engine.half_precision import InHalf

    kept = compiled_folder(settings.cache_folder, f"onnxruntime-{onnxruntime.VERSION}-fp16-batch")
    forms = DerivedGraphs(kept, "a form in half precision", room=2)
    return lambda threads: InHalf(replace(engine, intra_op_threads=threads), forms)


def _openvino(choice: Choice, settings: Settings, device_id: int, scheduler: Scheduler) -> EngineOf:
    from .engine.full_precision import RetryInFull
    from .engine.openvino import OpenVinoEngine

    on_gpu = choice.device == "openvino-gpu"
    compiled = compiled_folder(settings.cache_folder, f"openvino-{version('openvino')}") if on_gpu else None

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
