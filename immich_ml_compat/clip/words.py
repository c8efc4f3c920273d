"""A text's words as BERT's own code makes them, exactly.

The `tokenizers` library has a like step that differs in what is no letter: private and unassigned characters,
final sigmas, white space, the ranges of ideographs, and its version of Unicode. Source: `BasicTokenizer` of BERT.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator

_IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002ceaf\U0002f800-\U0002fa1f"
# Spaces, and the controls that count as such; split() below knows the rest of white space.
_TOKEN = re.compile(rf"[{_IDEOGRAPHS}]|[^{_IDEOGRAPHS} \t\n\r]+")

# All that ASCII has beside letters, digits and controls counts as punctuation, whatever Unicode calls it.
_ASCII_SIGNS = "$+<=>^`|~"

# The one wanted difference from Chinese-CLIP's tokenizer: it was trained on texts with these mapped.
_QUOTES = {"“": '"', "”": '"'}

_MAX_REMEMBERED = 2**16


def words(text: str) -> Iterator[str]:
    """Yield the words of a text, in lower case and without accents; each ideograph and sign is one.

    A text of any length takes no longer than what is drawn from it, unless it has no spaces.
    """
    for token in _TOKEN.finditer(text):
        # Controls go first: whether a sigma is final depends on what is left around it.
        yield from token[0].translate(_CLEANED).lower().translate(_FOLDED).split()


class _Table(dict[int, str]):
    """What becomes of each character, found out when it is first met."""

    def __init__(self, change: Callable[[str], str]) -> None:
        super().__init__()
        self._change = change

    def __missing__(self, code: int) -> str:
        changed = self._change(chr(code))
        if len(self) < _MAX_REMEMBERED:
            self[code] = changed
        return changed


def _cleaned(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cs":
        return "\uffff"  # half a character, which the library does not take: as unknown as this
    return "" if character == "\ufffd" or category in ("Cc", "Cf") else character


def _folded(character: str) -> str:
    """Take the accents off and put spaces around punctuation.

    BERT decomposes a whole word, which also sorts its marks, in quadratic time. Those that stay are in no
    vocabulary, so their order changes nothing.
    """
    parts = unicodedata.normalize("NFD", _QUOTES.get(character, character))
    return "".join(
        f" {part} " if _is_punctuation(part) else part for part in parts if unicodedata.category(part) != "Mn"
    )


def _is_punctuation(character: str) -> bool:
    return character in _ASCII_SIGNS or unicodedata.category(character).startswith("P")


_CLEANED = _Table(_cleaned)
_FOLDED = _Table(_folded)
