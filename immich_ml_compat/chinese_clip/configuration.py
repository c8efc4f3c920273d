"""The small files in the folder of a Chinese-CLIP model: its configuration, pre-processing and tokenizer.

They are the same for every checkpoint of an architecture, so this package can stand in for them where a folder
has the graphs alone. Sources: Chinese-CLIP's model table and `tokenize`; the forms are open_clip's and those of
the `tokenizers` library.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..catalog import CHINESE_CLIP_DIMENSIONS
from .architectures import CONTEXT_LENGTH, architecture

VOCABULARY = Path(__file__).with_name("vocabulary.txt")
PAD, UNKNOWN, START, END, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"


def small_paths(name: str) -> frozenset[str]:
    """Return the paths of the small files in a Chinese-CLIP model's folder; none for another name."""
    return frozenset(_FILES) if name in CHINESE_CLIP_DIMENSIONS else frozenset()


def small_file(name: str, path: str) -> bytes:
    """Return the content of a small file of a Chinese-CLIP model, by its path in the model's folder."""
    return json.dumps(_FILES[path](name), ensure_ascii=False).encode()


def small_files(name: str) -> dict[str, bytes]:
    """Return the content of every small file of a Chinese-CLIP model, by its path; empty for another name."""
    return {path: small_file(name, path) for path in small_paths(name)}


def vocabulary() -> dict[str, int]:
    """Return the id of each piece of a word."""
    # Not splitlines: one of the pieces is a line separator.
    pieces = VOCABULARY.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return {piece: number for number, piece in enumerate(pieces)}


def _config(name: str) -> dict[str, Any]:
    return {
        "embed_dim": CHINESE_CLIP_DIMENSIONS[name],
        "vision_cfg": {"image_size": architecture(name).image_size},
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": len(vocabulary()),
            "tokenizer_kwargs": {"clean": "bert"},  # split into words as BERT's own code does
        },
    }


def _preprocessing(name: str) -> dict[str, Any]:
    return {
        "size": [architecture(name).image_size] * 2,
        "mode": "RGB",
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
        "interpolation": "bicubic",
        "resize_mode": "squash",
        "fill_color": 0,
        # Stock SigLIP folders say `squash` too, and the stock server crops nevertheless. Only this makes it squash.
        "do_center_crop": False,
    }


def _tokenizer_config(_name: str) -> dict[str, Any]:
    return {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "model_max_length": CONTEXT_LENGTH,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "cls_token": START,
        "sep_token": END,
        "mask_token": MASK,
    }


def _tokenizer(_name: str) -> dict[str, Any]:
    """BERT's tokenizer as the library has it, which is nearly Chinese-CLIP's; `clip/words.py` makes it exact."""
    ids = vocabulary()
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": ids[token], "content": token} | special for token in (PAD, UNKNOWN, START, END, MASK)],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,  # as `lowercase` says
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": _between(START, END, ids),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": UNKNOWN,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 200,
            "vocab": ids,
        },
    }


def _between(start: str, end: str, ids: dict[str, int]) -> dict[str, Any]:
    """Put a token in front of a text and one behind it."""

    def token(name: str) -> dict[str, Any]:
        return {"SpecialToken": {"id": name, "type_id": 0}}

    def text(name: str) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": 0}}

    return {
        "type": "TemplateProcessing",
        "single": [token(start), text("A"), token(end)],
        "pair": [token(start), text("A"), token(end), text("B"), token(end)],
        "special_tokens": {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in (start, end)},
    }


_FILES: dict[str, Callable[[str], dict[str, Any]]] = {
    "config.json": _config,
    "visual/preprocess_cfg.json": _preprocessing,
    "textual/tokenizer.json": _tokenizer,
    "textual/tokenizer_config.json": _tokenizer_config,
}
