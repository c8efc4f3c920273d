"""Chinese-CLIP's tokens are the original's, id for id."""

import random
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from immich_ml_compat.catalog import CHINESE_CLIP_DIMENSIONS
from immich_ml_compat.chinese_clip.architectures import CONTEXT_LENGTH
from immich_ml_compat.chinese_clip.configuration import VOCABULARY, small_files, vocabulary
from immich_ml_compat.clip.textual import Tokenization
from immich_ml_compat.clip.words import words
from immich_ml_compat.store import ModelFiles

from .oracles import chinese_clip, packaged

NAME = "cn-clip_ViT-B-16"
NOWHERE = Path("nowhere")

SPACES = [char for char in map(chr, range(sys.maxunicode)) if char.isspace()]
CHINESE = "一只狗在海边日落时奔跑，电子发票合计：￥28.00。「你好」《世界》？！…—～"
SNIPPETS = [
    *("a dog", "Running", "café", "naïve", "STRASSE", "ß", "unaffable", "2026-11-21", "3.14%", "C++", "don't"),
    *("ΟΔΟΣ", "ΣΣ", "aΣ.", "Σ\u0301", "A\u0345Σ\u0345", "İstanbul", "ıI", "Dž", "ﬁ", "ＡＢＣ", "ｶﾞ", "が", "한국어"),
    *("[CLS]", "[SEP]", "[MASK]", "[UNK]", "[PAD]", "##", "##ing", "<S>", "##\u2028"),
    *("👨\u200d👩\u200d👧\u200d👦", "🏳\ufe0f\u200d🌈", "🇨🇳", "👍🏽", "1\ufe0f\u20e3", "☃"),
    *("𠀀", "𪜀", "\U0002b740", "\U0002b81f", "\U0002ceb0", "\U0002f800", "\U0002fa20", "\U00030000", "豈", "﨎", "㐀"),
    *("\u0301", "e\u0301", "e\u0301\u0316\u0327", "\u0488", "\u0903", "\u302e\U0001d165", "\u0316\u0301" * 20),
    *("\x00", "\x07", "\x0b", "\x0c", "\x1c", "\x1f", "\x7f", "\x85", "\xad", "\u200b", "\u200e", "\ufeff", "\ufffd"),
    *("\ue000", "\uf8ff", "\U000f0000", "\U0010fffd", "\u0378", "\U000e0080", "\U0001fbff", "\ufdd0", "\uffff"),
    *("\u037e", "\u0387", "\u1fef", "\u2126", "\u212b", "\u3000", "\u00a8", "\u00b4", "〆", "々", "〇"),
]
LONG = [
    *("x" * 199, "x" * 200, "x" * 201, "X" * 100 + "É" * 100, "x\u0301" * 200, "x\u0301" * 201, "λ" * 200, "λ" * 5_000),
    *("狗x" * 40, "-" * 60, "ab-" * 40, "\u0316\u0301" * 5_000, "a dog " * 5_000, CHINESE * 20, "狗" * 20_000),
]


@pytest.fixture(scope="module")
def tokenize() -> Tokenization:
    return Tokenization.read(ModelFiles(NAME, NOWHERE / "textual/model.onnx", NOWHERE / "config.json"))


def original(texts: list[str]) -> list[list[int]]:
    """The ids that Chinese-CLIP's own code gives for queries with straight quotation marks."""
    ids: list[list[int]] = chinese_clip().tokenize([straight(text) for text in texts]).tolist()
    return ids


def straight(text: str) -> str:
    return text.replace("“", '"').replace("”", '"')


def require_equal(tokenize: Tokenization, texts: list[str]) -> None:
    for text, expected in zip(texts, original(texts), strict=True):
        assert tokenize(text, None)[0] == expected, ascii(text)


def corpus(count: int) -> Iterator[str]:
    """Texts such as people write and such as nobody does, the same at every run."""
    choose = random.Random(4)
    pieces = [*SNIPPETS, *SPACES, *CHINESE, *"“”‘’\"'.,!?()[]{}#@&*/\\^$`~|<>=+_"]
    codes = [range(0x250), range(0x370, 0x600), range(0x3000, 0x9FFF), range(0x1F000, 0x1FC00), range(sys.maxunicode)]
    for _ in range(count):
        parts = [choose.choice(pieces) for _ in range(choose.randrange(12))]
        parts += [chr(choose.choice(choose.choice(codes))) for _ in range(choose.randrange(5))]
        parts += choose.choices(CHINESE, k=choose.choice([0, 0, 5, 20, 80]))
        parts += [choose.choice(LONG)] if choose.random() < 0.002 else []
        choose.shuffle(parts)
        yield "".join(parts)


# ---------------------------------------------------------------- the same ids


def test_a_corpus_gives_the_originals_ids(tokenize: Tokenization) -> None:
    texts = [*corpus(20_500), *SNIPPETS, *LONG, *SPACES, "", CHINESE]
    assert len(set(texts)) >= 20_000
    assert sum(len(text) > 52 for text in texts) > 2_000
    require_equal(tokenize, texts)


def test_every_character_gives_the_originals_ids(tokenize: Tokenization) -> None:
    """Those of planes 0 to 3 and 14, between letters; the other planes are all unassigned or all private."""
    ranges = [range(0x40000), range(0xE0000, 0xE1000), range(0xF0000, 0xF0100), range(0x10FF00, 0x110000)]
    characters = [chr(code) for codes in ranges for code in codes]
    # Three words at the most for each, so that none is cut off.
    texts = [
        " ".join(f"a{character}b" for character in characters[start : start + 16])
        for start in range(0, len(characters), 16)
    ]
    require_equal(tokenize, texts)


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_gives_the_originals_ids(tokenize: Tokenization, text: str) -> None:
    require_equal(tokenize, [text])


@given(st.text(st.sampled_from("ΣσaА\u0301\u0345'.:\u200b\x00\ufffd 狗İ“[S]#\u302e\u1d165\u0316ǅ")))
def test_any_text_of_awkward_characters_gives_the_originals_ids(tokenize: Tokenization, text: str) -> None:
    require_equal(tokenize, [text])


def test_curly_quotation_marks_are_straight_ones(tokenize: Tokenization) -> None:
    """The one wanted difference: the original's training maps them and its `tokenize` does not."""
    assert tokenize("他说“你好”", None) == tokenize('他说"你好"', None)
    assert chinese_clip().tokenize("“").tolist() != [tokenize("“", None)[0]]
    others = "‘’«»„‟「」"
    assert chinese_clip().tokenize(others).tolist() == [tokenize(others, None)[0]]


def test_the_language_changes_nothing(tokenize: Tokenization) -> None:
    for language in ("zh-CN", "de", "", "xx"):
        assert tokenize("一只狗", language) == tokenize("一只狗", None)


def test_a_graph_that_takes_any_length_gets_no_padding(tokenize: Tokenization) -> None:
    files = ModelFiles(NAME, NOWHERE / "textual/model.onnx", NOWHERE / "config.json")
    short = Tokenization.read(files, any_length=True)
    for text in ("", "一只狗", "a dog " * 100):
        (padded,) = original([text])
        ids, mask = short(text, None)
        assert ids == [number for number in padded if number]
        assert mask == [1] * len(ids)


def test_words_are_drawn_one_by_one() -> None:
    drawn = words("狗" * 1_000_000)
    assert [next(drawn) for _ in range(3)] == ["狗"] * 3
    assert list(words("One—two\u2028狗狗 É!")) == ["one", "—", "two", "狗", "狗", "e", "!"]
    assert list(words("\u200b \x00\ufffd\u0301")) == []


# ---------------------------------------------------------------- what the files say


def test_the_package_carries_the_vocabulary_and_says_whose_it_is(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=Path(__file__).parents[1], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("immich_ml_compat/chinese_clip/vocabulary.txt") == VOCABULARY.read_bytes()
        assert b"Apache License" in archive.read("immich_ml_compat/chinese_clip/NOTICE")


def test_the_vocabulary_is_the_originals() -> None:
    assert VOCABULARY.read_bytes() == packaged("cn_clip", "clip/vocab.txt").read_bytes()
    theirs: dict[str, int] = chinese_clip()._tokenizer.vocab
    assert {piece.strip(): number for piece, number in vocabulary().items()} == theirs
    assert len(vocabulary()) == 21128


@pytest.mark.parametrize("name", CHINESE_CLIP_DIMENSIONS)
def test_the_tokenizer_file_serves_by_itself_too(name: str) -> None:
    """As the stock server would use it: exact on common text."""
    tokenizer: Any = Tokenizer.from_buffer(small_files(name)["textual/tokenizer.json"])
    tokenizer.enable_padding(length=CONTEXT_LENGTH, pad_token="[PAD]", pad_id=tokenizer.token_to_id("[PAD]"))
    tokenizer.enable_truncation(max_length=CONTEXT_LENGTH)
    texts = [CHINESE, CHINESE * 3, "A dog on the beach", "Café, naïve; 2026-11-21", "unaffable " * 30, "x" * 201, ""]
    assert [tokenizer.encode(text).ids for text in texts] == original(texts)
