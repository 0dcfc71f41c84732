"""Makes the index of a corpus for the tool `search`.

    python -m mmrl.tools.index --source=a.jsonl --source=b.jsonl --target=corpus.db

A line of a corpus is {"text": …}, with "title" and "id" if it has them.
"""

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

from absl import flags

from mmrl import config as configs
from mmrl.errors import UserError

_TABLE = (
    "CREATE VIRTUAL TABLE documents USING fts5(id UNINDEXED, title, text, "
    "tokenize='porter unicode61 remove_diacritics 2')"
)


def define_flags() -> None:
    flags.DEFINE_multi_string("source", None, "JSONL file of documents.", required=True)
    flags.DEFINE_string("target", None, "Index to write.", required=True)


def build_index(sources: Sequence[str | os.PathLike], database: str | os.PathLike) -> int:
    """Writes the index of JSONL files to `database`, replacing it; returns how many documents.

    Raises `UserError` with file and line for a line without text.
    """
    target = Path(database)
    partial = target.with_name(f"{target.name}.partial")
    partial.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(partial)) as connection, connection:
        connection.execute(_TABLE)
        rows = (row for source in sources for row in _documents(Path(source)))
        connection.executemany("INSERT INTO documents VALUES (?, ?, ?)", rows)
        connection.execute("INSERT INTO documents(documents) VALUES ('optimize')")
        (count,) = connection.execute("SELECT count(*) FROM documents").fetchone()
    partial.replace(target)
    return count


def _documents(source: Path) -> Iterable[tuple[str, str, str]]:
    """(id, title, text) of each line."""
    try:
        with open(source, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _document(line, f"{source}, line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"corpus {source} cannot be read: {error}") from error


def _document(line: str, place: str) -> tuple[str, str, str]:
    try:
        document = json.loads(line)
    except ValueError as error:
        raise UserError(f"{place} is not JSON: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("text"), str):
        raise UserError(f'{place}: expected {{"text": …}}, got {line.strip()[:80]}')
    return str(document.get("id", "")), str(document.get("title", "")), document["text"]


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: write --source=… and --target=…")
    values = flags.FLAGS
    print(f"{build_index(values.source, values.target)} documents")


if __name__ == "__main__":
    define_flags()
    configs.run(main)
