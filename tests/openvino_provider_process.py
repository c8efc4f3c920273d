"""Answers requests by ONNX Runtime's OpenVINO provider, which another build of ONNX Runtime has than the tests' own.

    PYTHONPATH=<that build> python -m tests.openvino_provider_process <cache folder> <precision> <entries> <photo>

Computes on OpenVINO's CPU, as there need be no Intel graphics. Prints the answer, and what graphs ran on, as JSON.
"""

import json
import sys
from pathlib import Path
from unittest.mock import patch

from immich_ml_compat.engine import onnxruntime
from immich_ml_compat.messages import PredictRequest
from immich_ml_compat.service import Service
from immich_ml_compat.settings import Settings


def main(cache: str, precision: str, entries: str, photo: str) -> None:
    patch.object(onnxruntime, "_OPENVINO_DEVICE", "CPU").start()
    settings = {"engine": "onnxruntime", "device": "openvino-gpu", "precision": precision, "cache_folder": cache}
    service = Service(Settings.model_validate(settings))
    answer = service.answer(PredictRequest(entries, image=Path(photo).read_bytes()))
    providers = {status.provider for status in service.models.statuses()}
    print(json.dumps({"status": answer.status, "body": json.loads(answer.body), "providers": sorted(providers)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
