"""The tool `search`: full text of a local corpus, by SQLite's FTS5 and `mmrl.tools.index`."""

import contextlib
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from mmrl.errors import UserError
from mmrl.tools.tool import Tool, tool

MOST_WORDS = 32  # of a query
EXCERPT_WORDS = 60  # FTS5 allows 64
# bm25 weighs the columns id, title and text; smaller is better.
_QUERY = (
    "SELECT id, title, snippet(documents, 2, '', '', ' … ', ?) FROM documents "
    "WHERE documents MATCH ? ORDER BY bm25(documents, 0, 3, 1), rowid LIMIT ?"
)


def search(database: str | os.PathLike, *, results: int = 5) -> Tool:
    """The tool `search` over an index of `mmrl.tools.index`. Raises `UserError` if it is none."""
    path = Path(database)
    list(find(path, "test", 1))

    def search(query: str) -> str:
        """Searches a collection of documents and returns the best matching excerpts.

        Args:
            query: a few key words
        """
        found = list(find(path, query, results))
        entries = [f"[{number}] {entry}" for number, entry in enumerate(found, 1)]
        return "\n\n".join(entries) or "No document matches."

    return tool(search)


def find(database: Path, query: str, results: int) -> Iterator[str]:
    """The documents that match best, title and excerpt each.

    The words of `query` are looked for as they are; no operator of FTS5's language is one.
    """
    words = re.findall(r"\w+", query)[:MOST_WORDS]
    if not database.is_file():
        raise UserError(f"no index at {database}: make it with python -m mmrl.tools.index")
    if not words:
        return
    match = " OR ".join(f'"{word}"' for word in dict.fromkeys(words))
    try:
        address = f"{database.resolve().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as connection:
            rows = connection.execute(_QUERY, (EXCERPT_WORDS, match, results)).fetchall()
    except sqlite3.DatabaseError as error:
        raise UserError(f"{database} is no index of mmrl.tools.index: {error}") from error
    for name, title, text in rows:
        heading = " ".join(filter(None, [f"({name})" if name else "", title]))
        yield f"{heading}\n{text}" if heading else text
