"""Examples from .jsonl and .parquet files, checked when they are read."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmrl.data.records import Example
from mmrl.errors import UserError, nearest

SUFFIXES = (".jsonl", ".parquet")


def split_slice(source: str) -> tuple[Path, slice]:
    """Splits `path@[a:b]` into the path and its rows, a slice as of a list; `path` alone is all."""
    match = re.fullmatch(r"(.+)@\[(-?\d*):(-?\d*)\]", source)
    if match is None:
        return Path(source), slice(None)
    path, *bounds = match.groups()
    try:
        return Path(path), slice(*(int(bound) if bound else None for bound in bounds))
    except ValueError:
        raise UserError(f"{source}: a slice is written path@[a:b] with integers a and b") from None


def read_examples(
    source: str,
    *,
    input_key: str = "input",
    label_key: str | None = None,
    metadata_key: str = "metadata",
    tool_key: str = "tools",
) -> list[Example]:
    """All rows of `source`, a .jsonl or .parquet file with an optional `@[a:b]` slice of rows.

    A row needs a prompt (text or chat messages) under `input_key` and, unless `label_key` is None,
    a label under it. Metadata and tools may be absent, or be JSON text; null counts as absent.
    Metadata that are a list, such as recorded tool calls, stand under `metadata_key` in the
    example's metadata.
    Blank lines of a .jsonl file are not rows. Raises `UserError` for the first bad row, with its
    line (.jsonl) or row (.parquet) counted from 1, the field, and the remedy.
    """
    path, _ = split_slice(source)
    keys = [key for key in (input_key, label_key, metadata_key, tool_key) if key]
    examples = []
    for number, row in read_rows(source, keys):
        place = f"{path}:{number}"
        prompt = _required(row, input_key, "input_key", place)
        label = None if label_key is None else _required(row, label_key, "label_key", place)
        metadata = _optional(row, metadata_key, (dict, list), place) or {}
        if isinstance(metadata, list):
            metadata = {metadata_key: metadata}
        tools = _optional(row, tool_key, (list,), place)
        examples.append(Example(_check_prompt(prompt, input_key, place), label, metadata, tools))
    if not examples:
        raise UserError(f"{source} selects no rows")
    return examples


def read_rows(source: str, keys: list[str] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line or row number, fields) of every row of `source`; of a .parquet file only `keys`.

    Raises `UserError` for a file that is not there or not of these kinds.
    """
    path, rows = split_slice(source)
    if path.suffix not in SUFFIXES:
        raise UserError(f"{source}: expected a file that ends in {' or '.join(SUFFIXES)}")
    if not path.is_file():
        beside = [str(file) for file in path.parent.glob("*") if file.suffix in SUFFIXES]
        raise UserError(f"no data file {path}.{nearest(str(path), beside)}")
    return _read_jsonl(path, rows) if path.suffix == ".jsonl" else _read_parquet(path, rows, keys)


def _read_jsonl(path: Path, rows: slice) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = [(n, line) for n, line in enumerate(path.read_bytes().split(b"\n"), 1) if line.strip()]
    for number, line in lines[rows]:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: not JSON ({error}): one object a line") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: expected a JSON object, got {type(row).__name__}")
        yield number, row


def _read_parquet(
    path: Path, rows: slice, keys: list[str] | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"reading {path} needs pyarrow: pip install mmrl[train]") from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path} is not a parquet file: {error}") from None
    columns = file.schema_arrow.names
    present = [key for key in keys or columns if key in columns]
    selected = range(file.metadata.num_rows)[rows]
    table = file.read(columns=present).slice(selected.start, len(selected))
    absent = dict.fromkeys(columns)
    for number, row in zip(selected, table.to_pylist(), strict=True):
        yield number + 1, absent | row


def _required(row: dict[str, Any], key: str, setting: str, place: str) -> Any:
    value = row.get(key)
    if value is None:
        problem = "is null: fill it in" if key in row else f"is missing.{nearest(key, row)}"
        remedy = f"Set {setting} to one of {', '.join(row)}" if key not in row else ""
        raise UserError(f"{place}: field {key!r} {problem} {remedy}".rstrip())
    return value


def _optional(row: dict[str, Any], key: str, kinds: tuple[type, ...], place: str) -> Any:
    value = row.get(key)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if value is not None and not isinstance(value, kinds):
        words = " or ".join(kind.__name__ for kind in kinds)
        raise UserError(f"{place}: field {key!r} must be a {words} or its JSON text, got {value!r}")
    return value


def _check_prompt(prompt: Any, key: str, place: str) -> str | list[dict[str, Any]]:
    if isinstance(prompt, str) and prompt:
        return prompt
    if isinstance(prompt, list) and prompt:
        bad = [m for m in prompt if not (isinstance(m, dict) and isinstance(m.get("role"), str))]
        if not bad:
            return prompt
        raise UserError(f"{place}: field {key!r} has the message {bad[0]!r}; it needs a 'role'")
    raise UserError(
        f"{place}: field {key!r} must be text or a list of chat messages, and not empty; got "
        f"{prompt!r}"
    )
