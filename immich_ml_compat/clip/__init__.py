"""Smart search: photos and queries to embeddings in one space."""

from ..answer import embedding_text
from ..images import Photo
from ..models import Models
from ..plan import ClipImage, ClipText
from .textual import ClipTextual
from .visual import ClipVisual


def embed_image(step: ClipImage, photo: Photo, models: Models) -> str:
    """Return the embedding of a photo, as JSON text."""
    with models.use(step.model, ClipVisual) as tower:
        reduced = photo.reduced(tower.least_side)
        return embedding_text(tower.embed(reduced.image, reduced.extent))


def embed_text(step: ClipText, text: str, models: Models) -> str:
    """Return the embedding of a query, as JSON text."""
    with models.use(step.model, ClipTextual) as tower:
        return embedding_text(tower.embed(text, step.language))
