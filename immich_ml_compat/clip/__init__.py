"""Smart search: photos and queries to embeddings in one space."""

from PIL import Image

from ..answer import embedding_text
from ..models import Models
from ..plan import ClipImage, ClipText
from .textual import ClipTextual
from .visual import ClipVisual


def embed_image(step: ClipImage, image: Image.Image, models: Models) -> str:
    """Return the embedding of an RGB image, as JSON text."""
    with models.use(step.model, ClipVisual) as tower:
        return embedding_text(tower.embed(image))


def embed_text(step: ClipText, text: str, models: Models) -> str:
    """Return the embedding of a query, as JSON text."""
    with models.use(step.model, ClipTextual) as tower:
        return embedding_text(tower.embed(text, step.language))
