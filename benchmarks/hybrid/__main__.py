"""`python -m benchmarks.hybrid`: see README.md in this folder."""

import argparse
from pathlib import Path

import httpx

from .immich import Database, Immich
from .quality import measure_quality
from .space import text_server
from .speed import measure_speed


def main() -> None:
    """Run the measurements that are asked for and print their tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hybrid", description="Measure Immich's hybrid search.")
    parser.add_argument(
        "immich", help="address of an Immich server with the patch, its library empty or this program's"
    )
    parser.add_argument("key", help="an API key of its only user")
    parser.add_argument("database", help="address of its database: postgres://user@host:port/name")
    parser.add_argument("what", nargs="*", choices=["quality", "speed"], default=["quality", "speed"])
    parser.add_argument("--ml", default="http://127.0.0.1:3003", help="a running server of this project, for the OCR")
    parser.add_argument("--port", type=int, default=3199, help="where Immich is told to look for machine learning")
    parser.add_argument("--texts", type=Path, default=Path("hybrid-texts.json"), help="keeps what OCR read")
    arguments = parser.parse_args()
    database = Database(arguments.database)
    client = httpx.Client(base_url=arguments.immich, headers={"x-api-key": arguments.key}, timeout=300)
    words = database.run("select to_regprocedure('hybrid_search.matches(text)') is not null")
    print("Chinese words: zhparser" if words == "t" else "Chinese words: Immich's bigrams", "\n")
    with client, text_server(arguments.port) as spaces:
        immich = Immich(client)
        if "quality" in arguments.what:
            print(*measure_quality(immich, database, spaces, arguments.ml, arguments.texts), "", sep="\n")
        if "speed" in arguments.what:
            print(*measure_speed(immich, database, spaces), "", sep="\n")


if __name__ == "__main__":
    main()
