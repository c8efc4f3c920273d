"""What a hybrid search costs PostgreSQL beside the stock smart search, on 100,000 photos."""

import statistics
from collections.abc import Sequence

import numpy as np

from .immich import Database, Immich
from .labels import SUBJECTS, Photo
from .space import Space

PHOTOS = 100_000
WITH_TEXT = 0.3
ROUNDS = 15
_WORDS = 20_000
_SPENT = """
select sum(total_exec_time + total_plan_time) from pg_stat_statements
where dbid = (select oid from pg_database where datname = current_database())
"""


def measure_speed(immich: Immich, database: Database, spaces: list[Space]) -> list[str]:
    """Fill the library, search, and return a Markdown table's lines."""
    random = np.random.default_rng(1)
    words = _vocabulary(random)
    spaces[:] = [Space(misled=False)]
    if database.run("select count(*) from asset") != str(PHOTOS):
        library = [Photo(f"photo-{i}", subject=int(random.integers(len(SUBJECTS)))) for i in range(PHOTOS)]
        texts = [_text(words, random) if random.random() < WITH_TEXT else [] for _ in library]
        database.fill([photo.name for photo in library], texts, spaces[0].pictures(library))
    rows = [
        "| query | page | stock ms | hybrid ms | ratio |",
        "|---|---|---|---|---|",
    ]
    asked = [(label, query, page) for label, query in _queries(words).items() for page in (1, 3)]
    return rows + [_row(immich, database, *question) for question in asked]


def _row(immich: Immich, database: Database, label: str, query: str, page: int) -> str:
    spent: dict[bool, list[float]] = {False: [], True: []}
    for round_ in range(ROUNDS + 2):  # two to warm up
        for hybrid in (False, True) if round_ % 2 else (True, False):
            database.run("select pg_stat_statements_reset()")
            immich.search(query, hybrid=hybrid, page=page)
            spent[hybrid].append(float(database.run(_SPENT)))
    stock, mixed = (statistics.median(spent[hybrid][2:]) for hybrid in (False, True))
    return f"| {label} | {page} | {stock:.1f} | {mixed:.1f} | {mixed / stock:.2f} |"


def _vocabulary(random: np.random.Generator) -> list[str]:
    """English-like and Chinese words in turn, the frequent ones first."""
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    characters = [chr(c) for c in range(0x4E00, 0x4E00 + 3000)]
    english = ["".join(random.choice(letters, random.integers(2, 10))) for _ in range(_WORDS // 2)]
    chinese = ["".join(random.choice(characters, random.integers(2, 5))) for _ in range(_WORDS // 2)]
    return [word for pair in zip(english, chinese, strict=True) for word in pair]


def _text(words: Sequence[str], random: np.random.Generator) -> list[str]:
    """Return 1 to 20 lines of 1 to 6 words, as often as their ranks say (Zipf)."""
    drawn = (len(words) ** random.random((int(random.integers(1, 21)), int(random.integers(1, 7))))).astype(int) - 1
    return [" ".join(words[i] for i in line) for line in drawn]


def _queries(words: Sequence[str]) -> dict[str, str]:
    return {
        "a rare English word": words[8000],
        "a rare Chinese word": words[8001],
        "a frequent English word": words[40],
        "the most frequent English word": words[0],
        "the most frequent Chinese word": words[1],
        "two words": f"{words[40]} {words[101]}",
        "the two most frequent words": f"{words[0]} {words[1]}",
        "one Chinese character": words[301][0],
        "a picture": SUBJECTS[0][0],
    }
