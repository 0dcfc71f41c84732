import json

import pyarrow
import pyarrow.parquet
import pytest

from mmrl.data import Example
from mmrl.data.files import read_examples

TOOL = {"name": "add", "parameters": {"type": "object"}}
ROWS = [
    {
        "input": f"question {i}",
        "answer": str(i),
        "metadata": {"level": i},
        "tools": [TOOL],
        "unused": i,
    }
    for i in range(10)
]
EXAMPLES = [Example(f"question {i}", str(i), {"level": i}, [TOOL]) for i in range(10)]


def write_jsonl(path, rows):
    path.write_text(
        "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    )
    return str(path)


def write_parquet(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


@pytest.fixture(params=["jsonl", "parquet"])
def write(request, tmp_path):
    writer = {"jsonl": write_jsonl, "parquet": write_parquet}[request.param]
    return lambda rows: writer(tmp_path / f"rows.{request.param}", rows)


def test_both_formats_give_the_rows_of_the_file(write):
    assert read_examples(write(ROWS), label_key="answer") == EXAMPLES


@pytest.mark.parametrize("bounds", ["2:5", ":3", "7:", "-2:", ":-8", "0:99", ":"])
def test_a_slice_selects_rows_as_python_does(write, bounds):
    start, stop = (int(bound) if bound else None for bound in bounds.split(":"))
    source = f"{write(ROWS)}@[{bounds}]"
    assert read_examples(source, label_key="answer") == EXAMPLES[start:stop]


def test_metadata_and_tools_may_be_absent_null_or_json_text(write):
    rows = [{"input": "a", "metadata": '{"x": 1}', "tools": json.dumps([TOOL])}]
    assert read_examples(write(rows)) == [Example("a", None, {"x": 1}, [TOOL])]
    assert read_examples(write([{"input": "a"}])) == [Example("a")]
    assert read_examples(write([{"input": "a", "metadata": None}])) == [Example("a")]


def test_metadata_may_be_a_list_under_their_key(write):
    calls = [{"name": "f", "arguments": "{}"}, {"name": "g", "arguments": "{}"}]
    rows = [{"input": "a", "calls": calls}, {"input": "b", "calls": None}]
    first, second = read_examples(write(rows), metadata_key="calls")
    assert first.metadata == {"calls": calls}
    assert second.metadata == {}
    [text] = read_examples(
        write([{"input": "a", "calls": json.dumps(calls)}]), metadata_key="calls"
    )
    assert text.metadata == {"calls": calls}


def test_a_prompt_may_be_chat_messages_under_a_key_of_its_own(write):
    messages = [{"role": "system", "content": "add"}, {"role": "user", "content": "1 + 1"}]
    assert read_examples(write([{"chat": messages}]), input_key="chat") == [Example(messages)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"inptu": "a", "answer": "b"}, "'input' is missing. Did you mean inptu.*input_key"),
        ({"input": None, "answer": "b"}, "'input' is null: fill it in"),
        ({"input": "", "answer": "b"}, "'input' must be text or a list of chat messages"),
        ({"input": [{"content": "a"}], "answer": "b"}, "'input' has the message.*needs a 'role'"),
        ({"input": "a"}, "'answer' is missing.*label_key"),
        ({"input": "a", "answer": "b", "metadata": "x"}, "'metadata' must be a dict"),
        ({"input": "a", "answer": "b", "tools": '{"x": 1}'}, "'tools' must be a list"),
    ],
)
def test_a_bad_row_is_named_with_its_field_and_the_remedy(write, row, message):
    with pytest.raises(ValueError, match=rf"rows.(jsonl|parquet):1: field {message}"):
        read_examples(write([row]), label_key="answer")


def test_the_line_of_a_bad_row_counts_blank_lines_and_the_rows_before_a_slice(tmp_path):
    good = json.dumps({"input": "a"}) + "\n"
    path = write_jsonl(tmp_path / "rows.jsonl", [good, "\n", good, "{\n"])
    with pytest.raises(ValueError, match="rows.jsonl:4: not JSON"):
        read_examples(path + "@[1:]")
    assert read_examples(path + "@[:2]") == [Example("a")] * 2
    path = write_jsonl(tmp_path / "list.jsonl", ["[1]\n"])
    with pytest.raises(ValueError, match="list.jsonl:1: expected a JSON object, got list"):
        read_examples(path)


def test_the_row_of_a_bad_parquet_row_counts_the_rows_before_a_slice(tmp_path):
    path = write_parquet(tmp_path / "rows.parquet", [{"input": "a"}] * 3 + [{"input": None}])
    with pytest.raises(ValueError, match="rows.parquet:4: field 'input'"):
        read_examples(path + "@[2:]")


def test_files_that_cannot_be_read_are_named(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    (tmp_path / "bad.parquet").write_text("nothing")
    for source, message in [
        (f"{tmp_path}/trian.jsonl", "no data file .*Did you mean .*train.jsonl"),
        (f"{tmp_path}/train.csv", "ends in .jsonl or .parquet"),
        (f"{tmp_path}/train.jsonl@[5:5]", "selects no rows"),
        (f"{tmp_path}/train.jsonl@[-:5]", r"written path@\[a:b\]"),
        (f"{tmp_path}/bad.parquet", "bad.parquet is not a parquet file"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_examples(source)
