"""Configuration as nested frozen dataclasses: load a file, override by dotted key, check, save.

A config file is Python whose `get_config()` returns a dataclass. Everything here follows the
annotations of the fields (`mmrl.annotations` says which); bounds and relations between values are
checked by each dataclass in `__post_init__`. Every mistake of the user's is a `UserError` of one
line that names the dotted key, as it is typed on the command line: `config.model.num_layers`.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_origin

from absl import app

from mmrl.annotations import (
    alternatives,
    build,
    convert,
    field_kinds,
    is_config,
    is_config_type,
    parse,
)
from mmrl.errors import UserError, nearest, report

T = TypeVar("T")


def run(
    main: Callable[..., Any],
    *,
    overrides: bool = False,
    further: Callable[[list[str]], tuple[list[str], Any]] | None = None,
) -> NoReturn:
    """`absl.app.run` for a binary: a `UserError` is one line on stderr and exit status 2.

    Calls `main(argv)`, or with `overrides` `main(argv, overrides={dotted key: text})`, where
    `--config.a.b=VALUE` arguments are taken out before absl parses the rest (see `split_argv`).
    `further` takes other arguments out, (argv) -> (the rest, value), for `main(…, given=value)`.
    `--verbosity=1` shows the traceback as well.
    """
    try:
        if overrides:
            argv, changes = split_argv(sys.argv)
            if further is not None:
                argv, given = further(argv)
                main = functools.partial(main, given=given)
            app.run(functools.partial(main, overrides=changes), argv=argv)
        else:
            app.run(main)
    except UserError as error:
        report(error)
        sys.exit(2)


def split_argv(argv: list[str], flag: str = "config") -> tuple[list[str], dict[str, str]]:
    """Takes `--config.a.b=VALUE` and `--config.a.b VALUE` out of `argv`.

    Returns the other arguments, in order, and {"a.b": "VALUE"}; the last of equal keys wins and
    nothing after a bare `--` is touched. Raises `UserError` for a key without a value.
    """
    remaining: list[str] = []
    overrides: dict[str, str] = {}
    arguments = iter(argv)
    for argument in arguments:
        if argument == "--":
            return [*remaining, argument, *arguments], overrides
        key, equals, value = argument.partition("=")
        if not key.startswith((f"--{flag}.", f"-{flag}.")):
            remaining.append(argument)
            continue
        if not equals:
            value = next(arguments, "--")
            if value.startswith("--"):
                raise UserError(f"{key} needs a value: {key}=VALUE")
        overrides[key.lstrip("-").removeprefix(f"{flag}.")] = value
    return remaining, overrides


def load(path: str | os.PathLike, name: str = "config") -> Any:
    """Executes the Python file `path` and returns what its `get_config()` gives, type-checked.

    Another `name` than "config" calls `get_NAME()` and begins the dotted keys of errors.
    """
    path = Path(path)
    if not path.is_file():
        beside = [str(file) for file in path.parent.glob("*.py")]
        raise UserError(f"no {name} file {path}.{nearest(str(path), beside)}")
    with _one_line_errors(path):
        function = runpy.run_path(str(path)).get(f"get_{name}")
    if not callable(function):
        raise UserError(f"{path} must define get_{name}(), a function that returns the {name}")
    with _one_line_errors(path):
        config = function()
    if not is_config(config):
        raise UserError(
            f"{path}: get_{name}() must return a dataclass, got {config!r} of {type(config)}"
        )
    validate(config, name)
    return config


@contextlib.contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Whatever the config file raises becomes one line that starts with its name and line."""
    try:
        yield
    except Exception as error:
        lines = [error.lineno] if isinstance(error, SyntaxError) else []
        traceback = error.__traceback__
        while traceback:
            if traceback.tb_frame.f_code.co_filename == str(path):
                lines.append(traceback.tb_lineno)
            traceback = traceback.tb_next
        place = ":".join(map(str, [path, *lines[-1:]]))
        raise UserError(f"{place}: {type(error).__name__}: {error}") from error


def validate(config: Any, name: str = "config") -> None:
    """Raises `UserError` naming the first dotted key whose value is not of its annotated type."""
    convert(type(config), config, name, plain=False)


def override(config: T, overrides: Mapping[str, str], root: str = "config") -> T:
    """Copy of `config` with texts parsed by the type of their field: {"optimizer.lr": "1e-4"}.

    One entry of a dict is `key.NAME`, one of a tuple of dataclasses `key.INDEX`; `parse` gives the
    forms of the text. Settings that only another dataclass of a union has make one of that kind.
    All changes of one dataclass are made at once, so that its own validation sees a consistent
    whole. Raises `UserError` for an unknown key (naming the nearest valid one), a text that is not
    of the type, or a value that a `__post_init__` refuses.
    """
    tree: dict[str, Any] = {}
    for key, text in overrides.items():
        node, names = tree, key.split(".")
        for name in names[:-1]:
            node = node.setdefault(name, {})
            if isinstance(node, str):
                raise UserError(f"{root}.{key} is set twice, as a whole and in part")
        if names[-1] in node:
            raise UserError(f"{root}.{key} is set twice, as a whole and in part")
        node[names[-1]] = text
    return _replace(type(config), config, tree, root, keys(config))


def _replace(kind: Any, value: Any, tree: Any, key: str, valid: list[str]) -> Any:
    """`value`, of annotation `kind`, with the texts of `tree` in place; `valid`: known keys."""
    if isinstance(tree, str):
        return parse(kind, tree, key)
    old: dict[str, Any] = dict(_parts(value))
    member = next((k for k in alternatives(kind) if k is not str), kind)
    is_dict = isinstance(value, dict) or (value is None and dict in (member, get_origin(member)))
    cls = type(value) if is_config(value) else member
    if is_config(value) and not tree.keys() <= field_kinds(cls).keys():
        # Settings of another dataclass of the union: one of that kind instead, from nothing.
        for other in filter(is_config_type, alternatives(kind)):
            if tree.keys() <= field_kinds(other).keys():
                cls, old = other, {}
    if is_dict:
        kinds = dict.fromkeys(tree, get_args(member)[1] if get_args(member) else Any)
    elif is_config_type(cls):
        kinds = field_kinds(cls)
    else:
        kinds = {name: type(item) for name, item in old.items()}
    for name in filter(lambda name: name not in kinds, tree):
        raise _unknown(f"{key}.{name}", tree[name], valid)
    changes = {
        name: _replace(kinds[name], old.get(name), subtree, f"{key}.{name}", valid)
        for name, subtree in tree.items()
    }
    if is_dict:
        return old | changes
    if isinstance(value, tuple):
        return tuple((old | changes).values())
    return build(cls, old | changes, key)


def _unknown(key: str, tree: Any, valid: list[str]) -> UserError:
    while isinstance(tree, dict):
        name, tree = next(iter(tree.items()))
        key = f"{key}.{name}"
    hint = nearest(key.partition(".")[2], valid) or f" The keys are {', '.join(valid)}."
    return UserError(f"{key} does not exist.{hint}")


def _parts(value: Any) -> list[tuple[str, Any]]:
    """Named parts of a value that have dotted keys of their own."""
    if isinstance(value, dict):
        return list(value.items())
    if is_config(value):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, tuple) and any(map(is_config, value)):
        return [(str(index), item) for index, item in enumerate(value)]
    return []


def keys(config: Any) -> list[str]:
    """All dotted keys that can be overridden: fields, groups of fields, present dict entries."""
    found = []
    for name, value in _parts(config):
        found += [name, *(f"{name}.{key}" for key in keys(value))]
    return found


def to_dict(config: Any) -> Any:
    """Plain JSON values: dataclasses become dicts, tuples lists, non-finite floats strings."""
    if is_config(config) or isinstance(config, dict):
        return {name: to_dict(value) for name, value in _parts(config)}
    if isinstance(config, tuple | list):
        return [to_dict(value) for value in config]
    return str(config) if isinstance(config, float) and not math.isfinite(config) else config


def from_dict(cls: type[T], data: Mapping[str, Any]) -> T:
    """Inverse of `to_dict` for the dataclass `cls`; absent fields take their defaults."""
    return convert(cls, data, "config", plain=True)


def save_json(config: Any, path: str | os.PathLike) -> None:
    """Writes the whole config to `path`, which never holds half a file."""
    partial = Path(f"{path}.partial")
    partial.write_text(json.dumps(to_dict(config), indent=2, allow_nan=False) + "\n")
    partial.replace(path)


def load_json(cls: type[T], path: str | os.PathLike) -> T:
    """Reads what `save_json` wrote. Raises `UserError` naming the file."""
    try:
        return from_dict(cls, json.loads(Path(path).read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error
