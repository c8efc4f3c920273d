"""Small tokenizers of the same make as the published ones: the model, the normaliser, the special tokens.

Two things are simpler. The vocabularies are a few hundred words and the characters of several scripts.
Where the published files have SentencePiece's compiled table of character replacements, these have NFKC,
which it extends.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from .stock import TokenizerKind
from .vocabulary import CHARACTERS, FLORES_200, WORDS

SPACE = "▁"  # SentencePiece's sign for the start of a word
_CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass
class TokenizerFiles:
    """A tokenizer, and what its tokenizer_config.json says."""

    tokenizer: Tokenizer
    config: dict[str, object] = field(default_factory=dict)


def make_tokenizer(kind: TokenizerKind) -> TokenizerFiles:
    build: dict[TokenizerKind, Callable[[], TokenizerFiles]] = {
        "clip": _clip,
        "t5": _t5,
        "gemma": _gemma,
        "nllb": _nllb,
        "xlm_roberta": _xlm_roberta,
        "bert": _bert,
    }
    return build[kind]()


class _Merges:
    """The merges of a byte-pair encoding, joined from the left, and the tokens that they give."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self.vocabulary: dict[str, int] = {}
        self.merges: dict[tuple[str, str], None] = {}
        for token in tokens:
            self.token(token)

    def token(self, token: str) -> None:
        self.vocabulary.setdefault(token, len(self.vocabulary))

    def word(self, parts: Sequence[str]) -> None:
        joined = parts[0]
        self.token(joined)
        for part in parts[1:]:
            self.token(part)
            self.merges.setdefault((joined, part))
            joined += part
            self.token(joined)


def _special(tokenizer: Tokenizer, tokens: Iterable[str]) -> None:
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in tokens])


def _template(tokenizer: Tokenizer, template: str) -> None:
    names = [name for name in template.split() if name != "$A"]
    special = [(name, tokenizer.token_to_id(name)) for name in names]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)


def _clip() -> TokenizerFiles:
    start, end = "<|startoftext|>", "<|endoftext|>"
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _Merges([*letters, *(letter + "</w>" for letter in letters)])
    for word in WORDS:
        merges.word([*word[:-1], word[-1] + "</w>"])
    merges.token(start)
    merges.token(end)  # the highest id: the text tower looks for it so
    tokenizer = Tokenizer(
        models.BPE(
            vocab=merges.vocabulary,
            merges=list(merges.merges),
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            unk_token=end,
        )
    )
    one_space = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), one_space, normalizers.Lowercase()])
    split = pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    _special(tokenizer, [start, end])
    ids = merges.vocabulary
    tokenizer.post_processor = processors.RobertaProcessing(
        (end, ids[end]), (start, ids[start]), trim_offsets=False, add_prefix_space=False
    )
    config: dict[str, object] = {
        "add_prefix_space": False,
        "bos_token": start,
        "do_lower_case": True,
        "eos_token": end,
        "errors": "replace",
        "model_max_length": 77,
        "pad_token": end,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": end,
    }
    return TokenizerFiles(tokenizer, config)


def _sentencepiece_units() -> list[str]:
    """Whole words, then single characters: a word that is not listed falls into its characters."""
    words = [SPACE + word for word in WORDS] + [SPACE + word.capitalize() for word in WORDS]
    return list(dict.fromkeys([*words, *WORDS, SPACE, *CHARACTERS]))


def _unigram(special: Sequence[str], unknown: str) -> Tokenizer:
    pieces = [(token, 0.0) for token in special]
    pieces += [
        (unit, -12.0 if len(unit) == 1 else -6.0 - 0.001 * rank) for rank, unit in enumerate(_sentencepiece_units())
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=special.index(unknown), byte_fallback=False))
    _sentencepiece_text(tokenizer)
    _special(tokenizer, special)
    return tokenizer


def _sentencepiece_text(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.NFKC()
    metaspace = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")


def _t5() -> TokenizerFiles:
    tokenizer = _unigram(["<pad>", "</s>", "<unk>"], "<unk>")
    _template(tokenizer, "$A </s>")
    config: dict[str, object] = {
        "additional_special_tokens": [],
        "eos_token": "</s>",
        "extra_ids": 0,
        "model_max_length": 64,
        "pad_token": "</s>",
        "tokenizer_class": "T5Tokenizer",
        "unk_token": "<unk>",
    }
    return TokenizerFiles(tokenizer, config)


def _xlm_roberta() -> TokenizerFiles:
    tokenizer = _unigram(["<s>", "<pad>", "</s>", "<unk>"], "<unk>")
    _special(tokenizer, ["<mask>"])
    _template(tokenizer, "<s> $A </s>")
    config: dict[str, object] = {
        "bos_token": "<s>",
        "cls_token": "<s>",
        "eos_token": "</s>",
        "mask_token": "<mask>",
        "model_max_length": 512,
        "pad_token": "<pad>",
        "sep_token": "</s>",
        "tokenizer_class": "XLMRobertaTokenizer",
        "unk_token": "<unk>",
    }
    return TokenizerFiles(tokenizer, config)


def _gemma() -> TokenizerFiles:
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    merges = _Merges([*special, *(f"<0x{byte:02X}>" for byte in range(256)), SPACE, *CHARACTERS])
    for word in WORDS:
        merges.word([SPACE, *word])
        merges.word([*word])
    tokenizer = Tokenizer(
        models.BPE(
            vocab=merges.vocabulary,
            merges=list(merges.merges),
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    spaces = decoders.Replace(SPACE, " ")
    tokenizer.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse()])
    _special(tokenizer, special)
    _template(tokenizer, "$A <eos>")
    config: dict[str, object] = {
        "add_bos_token": False,
        "add_eos_token": True,
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "model_max_length": 64,
        "pad_token": "<pad>",
        "padding_side": "right",
        "tokenizer_class": "GemmaTokenizer",
        "unk_token": "<unk>",
    }
    return TokenizerFiles(tokenizer, config)


def _nllb() -> TokenizerFiles:
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    merges = _Merges([*special, SPACE, *CHARACTERS])
    for word in WORDS:
        merges.word([SPACE, *word])
    tokenizer = Tokenizer(
        models.BPE(vocab=merges.vocabulary, merges=list(merges.merges), unk_token="<unk>", fuse_unk=True)
    )
    _sentencepiece_text(tokenizer)
    _special(tokenizer, [*special, *FLORES_200, "<mask>"])
    _template(tokenizer, "eng_Latn $A </s>")
    config: dict[str, object] = {
        "additional_special_tokens": list(FLORES_200),
        "bos_token": "<s>",
        "cls_token": "<s>",
        "eos_token": "</s>",
        "mask_token": "<mask>",
        "model_max_length": 1024,
        "pad_token": "<pad>",
        "sep_token": "</s>",
        "src_lang": "eng_Latn",
        "tokenizer_class": "NllbTokenizer",
        "unk_token": "<unk>",
    }
    return TokenizerFiles(tokenizer, config)


def _bert() -> TokenizerFiles:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    inner = ["##" + character for character in CHARACTERS]
    capitalised = [word.capitalize() for word in WORDS]
    units = dict.fromkeys([*special, *CHARACTERS, *inner, *WORDS, *capitalised, *("##" + word for word in WORDS)])
    vocabulary = {token: index for index, token in enumerate(units)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    _special(tokenizer, special)
    _template(tokenizer, "[CLS] $A [SEP]")
    config: dict[str, object] = {
        "cls_token": "[CLS]",
        "do_lower_case": False,
        "mask_token": "[MASK]",
        "model_max_length": 512,
        "pad_token": "[PAD]",
        "sep_token": "[SEP]",
        "tokenizer_class": "BertTokenizer",
        "unk_token": "[UNK]",
    }
    return TokenizerFiles(tokenizer, config)
