"""The text tower of a CLIP model: OpenCLIP, SigLIP, nllb-CLIP, M-CLIP and Chinese-CLIP.

The graph's inputs tell the families apart: one tensor of token ids, or ids with an attention mask (M-CLIP).
"""

import json
import string
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..chinese_clip.architectures import CONTEXT_LENGTH
from ..engine import Array, Engine, Session, TensorInfo
from ..store import ModelFiles
from .embeddings import require_embeddings, run_tower
from .languages import flores_code
from .words import words

DEFAULT_CONTEXT_LENGTH = 77

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_MASK = "attention_mask"


@dataclass(frozen=True)
class Tokenization:
    """How a query becomes the tower's input."""

    tokenizer: Tokenizer
    context_length: int
    canonicalize: bool = False
    """Strip punctuation and lower the case first, as SigLIP was trained (open_clip's `clean`)."""

    language_prefix: bool = False
    """Put the language's FLORES-200 code in front, as nllb-CLIP was trained."""

    bert: bool = False
    """Split into words as BERT's own code does, as Chinese-CLIP was trained; the tokenizer then only looks them up."""

    @classmethod
    def read(cls, files: ModelFiles, any_length: bool = False) -> "Tokenization":
        """Read the tokenizer and its configuration. Raises OSError, KeyError or ValueError.

        `any_length` says that the graph takes fewer tokens than the context has. Chinese-CLIP's texts are not padded
        then, since a short one is several times faster; the other families' graphs rely on the padding.
        """
        config = json.loads(files.read(files.config))["text_cfg"]
        context_length = int(config.get("context_length", DEFAULT_CONTEXT_LENGTH))
        clean = (config.get("tokenizer_kwargs") or {}).get("clean")
        bert = clean == "bert"
        if bert:
            context_length = min(context_length, CONTEXT_LENGTH)  # its graphs have places for so many
        pad_token = json.loads(files.read(files.beside("tokenizer_config.json")))["pad_token"]
        if isinstance(pad_token, dict):  # the long form of transformers: {"content": "<pad>", …}
            pad_token = pad_token["content"]
        tokenizer = _read_tokenizer(files)
        pad_id = tokenizer.token_to_id(pad_token)
        if pad_id is None:
            raise ValueError(f"{files.beside('tokenizer.json')} has no token {pad_token!r} to pad with")
        tokenizer.enable_truncation(max_length=context_length)
        if bert and any_length:
            tokenizer.no_padding()
        else:
            tokenizer.enable_padding(length=context_length, pad_token=pad_token, pad_id=pad_id)
        if bert:
            tokenizer.normalizer = tokenizer.pre_tokenizer = None  # both are done by words()
        return cls(
            tokenizer,
            context_length,
            canonicalize=clean == "canonicalize",
            language_prefix=files.name.startswith("nllb"),
            bert=bert,
        )

    def __call__(self, text: str, language: str | None) -> tuple[list[int], list[int]]:
        """Return token ids and attention mask, cut to `context_length`, and padded unless the graph takes less."""
        if self.bert:
            # A word has one token at least.
            encoding = self.tokenizer.encode(list(islice(words(text), self.context_length)), is_pretokenized=True)
            return encoding.ids, encoding.attention_mask
        text = " ".join(text.split())
        if self.canonicalize:
            text = text.translate(_NO_PUNCTUATION).lower()
        if self.language_prefix and language is not None:
            text = flores_code(language) + text
        encoding = self.tokenizer.encode(text)
        return encoding.ids, encoding.attention_mask


class ClipTextual:
    """A text tower, ready to use."""

    def __init__(self, name: str, session: Session, tokenize: Tokenization) -> None:
        self._name = name
        self._session = session
        self._tokenize = tokenize

    @classmethod
    def load(cls, files: ModelFiles, engine: Engine) -> "ClipTextual":
        """Load the graph and its tokenizer. Raises EngineError, OSError, KeyError or ValueError."""
        session = engine.load(files.graph)
        require_embeddings(session, files)
        if any(len(tensor.shape) != 2 for tensor in session.inputs):
            raise ValueError(f"{files.graph} takes no tokens [batch, context]: it is no text tower")
        context = session.inputs[0].shape[-1]
        tokenize = Tokenization.read(files, any_length=context is None)
        if context not in (tokenize.context_length, None):
            raise ValueError(f"{files.graph} takes {context} tokens, config.json says {tokenize.context_length}")
        return cls(files.name, session, tokenize)

    @property
    def execution_provider(self) -> str:
        """What the graph runs on."""
        return self._session.execution_provider

    def warm(self) -> None:
        """Run once."""
        self.embed("")

    def embed(self, text: str, language: str | None = None) -> NDArray[np.float32]:
        """Embed a query: float32 [D], L2-normalised. Raises ModelOutputError."""
        ids, mask = self._tokenize(text, language)
        inputs = {
            tensor.name: _tensor(tensor, mask if tensor.name == _MASK else ids) for tensor in self._session.inputs
        }
        return run_tower(self._session, inputs, self._name)


def _tensor(info: TensorInfo, values: list[int]) -> Array:
    return np.array([values], dtype=info.dtype)


def _read_tokenizer(files: ModelFiles) -> Tokenizer:
    path = files.beside("tokenizer.json")
    try:
        return Tokenizer.from_buffer(files.read(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
