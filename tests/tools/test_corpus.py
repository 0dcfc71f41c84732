"""Search finds documents by their words, and no query is more than words."""

import asyncio
import json
import sqlite3
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.errors import UserError
from mmrl.text import ToolCall
from mmrl.tools import call, search
from mmrl.tools.corpus import find
from mmrl.tools.index import build_index

DOCUMENTS = [
    {"id": 1, "title": "Lightning", "text": "Thunder follows lightning. " + "rain " * 200},
    {"title": "Café", "text": "Coffee in Zürich, über die Brücke"},
    {"text": 'A quote " and NEAR(title) OR 1=1; DROP TABLE documents'},
    {"title": "Runners", "text": "She runs and he was running"},
]


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    lines = [json.dumps(document) for document in DOCUMENTS]
    (folder / "a.jsonl").write_text("\n".join(lines[:2]) + "\n\n")
    (folder / "b.jsonl").write_text("\n".join(lines[2:]))
    target = folder / "corpus.db"
    assert build_index([folder / "a.jsonl", folder / "b.jsonl"], target) == 4
    return target


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("lightning storm", "(1) Lightning\nThunder follows"),
        ("zurich cafe", "Café\nCoffee"),
        ("run", "Runners\nShe runs"),
        ("DROP", "A quote"),
        ("title", "A quote"),  # no column of the index
        ("Runners lightning", "(1) Lightning"),
    ],
)
def test_the_best_document_comes_first(query, first, database):
    found = list(find(database, query, 5))
    assert found
    assert any(entry.startswith(first) for entry in found[:2])
    assert len(found[0]) < 700


def test_a_title_counts_more_than_the_text(tmp_path):
    documents = [{"text": f"other words and apple {n}"} for n in range(5)]
    documents.append({"title": "apple", "text": "a fruit, and other words as well here"})
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, documents)))
    build_index([tmp_path / "a.jsonl"], tmp_path / "db")
    assert next(find(tmp_path / "db", "apple", 3)).startswith("apple\n")


@settings(max_examples=200, deadline=None)
@given(st.text() | st.text(alphabet="\"*^:()-+{}NEAR ANDORTtitle'\\\0_", max_size=40))
def test_any_query_is_answered(database, query):
    found = list(find(database, query, 5))
    words = {"lightning", "runs", "title", "quote", "a", "and"}
    if not any(character.isalnum() for character in query):
        assert not found
    assert not (set(query.lower().split()) & words) or found


def test_queries_do_not_change_the_index(database):
    before = database.read_bytes()
    for query in ['"; DROP TABLE documents; --', "documents MATCH 'x'", "a\0b", "x" * 100_000]:
        list(find(database, query, 5))
    assert database.read_bytes() == before
    assert sqlite3.connect(database).execute("SELECT count(*) FROM documents").fetchone() == (4,)


def test_the_tool_numbers_what_it_found(database):
    tools = [search(database, results=2)]
    result = asyncio.run(call(tools, ToolCall("search", {"query": "thunder quote runs"})))
    assert result.status == "ok"
    assert result.text.startswith("[1] ")
    assert result.text.count("\n\n[") == 1
    nothing = asyncio.run(call(tools, ToolCall("search", {"query": "xylophone"})))
    assert nothing.text == "No document matches."


def test_what_is_no_corpus_and_no_index_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"txt": "y"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\nno json\n')
    (tmp_path / "not.db").write_text("x" * 1000)
    for action, words in [
        (lambda: build_index([tmp_path / "a.jsonl"], tmp_path / "db"), "a.jsonl, line 2: expected"),
        (lambda: build_index([tmp_path / "b.jsonl"], tmp_path / "db"), "b.jsonl, line 2 is not"),
        (lambda: build_index([tmp_path / "c.jsonl"], tmp_path / "db"), "c.jsonl cannot be read"),
        (lambda: search(tmp_path / "db"), "no index at .*db: make it with"),
        (lambda: search(tmp_path / "not.db"), "not.db is no index"),
    ]:
        with pytest.raises(UserError, match=words):
            action()
    assert not (tmp_path / "db").exists()


def test_an_index_is_made_from_the_command_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "apples and pears"}\n')
    command = [sys.executable, "-m", "mmrl.tools.index"]
    flags = [f"--source={tmp_path}/a.jsonl", f"--target={tmp_path}/corpus.db"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=True)
    assert done.stdout == "1 documents\n"
    assert next(find(tmp_path / "corpus.db", "pear", 1)) == "apples and pears"
    wrong = subprocess.run([*command, "--sorce=x"], capture_output=True, text=True)
    assert wrong.returncode != 0
    assert "Traceback" not in wrong.stderr
