"""An official Chinese-CLIP checkpoint (`clip_cn_*.pt`) to a model's folder, as `store.py` describes it.

checkpoint.py → weights.py → vision.py, text.py → graph.py → model.onnx
configuration.py                                           → tokenizer.json and the other small files
"""

from pathlib import Path

from .architectures import architecture
from .checkpoint import CheckpointError, open_checkpoint
from .configuration import small_files
from .graph import Progress
from .text import text_tower
from .vision import image_tower
from .weights import WeightError, Weights

_LEAST_BYTES = 2  # of a number in a checkpoint: float16


def convert(
    checkpoint: Path,
    name: str,
    folder: Path,
    *,
    half: bool = False,
    begin: Progress = lambda size: None,
    progress: Progress = lambda count: None,
) -> None:
    """Write the folder of the Chinese-CLIP model `name`; `half` in float16.

    `begin` is told the bytes that will be written, before anything is; `progress` those that were written. Needs the
    memory of the largest tensor (less than 100 MB in all sizes) three times. Raises CheckpointError for a file that is
    not this model's checkpoint, and OSError; what `begin` raises passes through.
    """
    kind = architecture(name)
    with open_checkpoint(checkpoint) as opened:
        weights = Weights(opened, checkpoint, name)
        towers = {
            "visual": image_tower(weights, kind, half=half),
            "textual": text_tower(weights, kind, half=half),
        }
        # Tensors may share their numbers in the file: a small one could become any size. Official ones do not.
        if sum(graph.count() for graph in towers.values()) * _LEAST_BYTES > checkpoint.stat().st_size:
            raise weights.mismatch("it describes more numbers than it holds")
        begin(sum(graph.size() for graph in towers.values()))
        for path, content in small_files(name).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        try:
            for tower, graph in towers.items():
                graph.save(folder / tower / "model.onnx", progress)
        except WeightError as error:
            raise CheckpointError(f"{checkpoint}: {error}") from error
