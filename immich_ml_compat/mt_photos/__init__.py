"""MT Photos' API on the same models: what its own AI server (mt-photos-ai) answers, and its face server.

    api.py       its endpoints
    key.py       who may ask
    requests.py  what each asks for, as `POST /predict` would
    answers.py   the answer to that, in its shapes

Source: github.com/MT-Photos/mt-photos-ai and its derivative in immich-all-in-one.
"""

from .api import PATHS, MtPhotos, create_mt_photos, create_mt_photos_app
from .requests import Requests

__all__ = ["PATHS", "MtPhotos", "Requests", "create_mt_photos", "create_mt_photos_app"]
