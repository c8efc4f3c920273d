"""Workers that sleep a photo's time instead of computing: Python imports this by itself where it is on PYTHONPATH.

STUB_SECONDS is that time for each task, as JSON. One photo is worked on at a time.
"""

import json
import os
import sys
import threading
import time

if "-m" in sys.orig_argv and "immich_ml_compat.worker" in sys.orig_argv and "STUB_SECONDS" in os.environ:
    from immich_ml_compat import service
    from immich_ml_compat.answer import success
    from immich_ml_compat.messages import Answer, PredictRequest
    from immich_ml_compat.plan import plan_request

    SECONDS = json.loads(os.environ["STUB_SECONDS"])
    working = threading.Lock()

    def answer(self: service.Service, request: PredictRequest) -> Answer:
        """Take as long as a photo takes, and answer about as much."""
        tasks = plan_request(request, self.names).tasks
        with working:
            time.sleep(sum(SECONDS[task] for task in tasks))
        return success(dict.fromkeys(tasks, "0" * 5000), (1, 1))

    service.Service.answer = answer  # type: ignore[method-assign]
