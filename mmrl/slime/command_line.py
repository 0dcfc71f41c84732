"""Takes slime's flags out of a command line, as argparse would read them."""

from collections.abc import Collection, Container, Mapping

from mmrl.errors import UserError, nearest
from mmrl.slime.refused import Form
from mmrl.slime.table import TABLE, meaning

Given = Mapping[str, tuple[str, ...]]  # flag without dashes -> its values, none for a switch


def split_argv(
    argv: list[str], own: Collection[str] = ()
) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """Takes `--flag value`, `--flag=value`, `--flag a b` and switches of slime out of `argv`.

    Returns the other arguments, in order, and {flag: values}; the last of equal flags wins, and
    nothing after a bare `--` is touched. `own` are the program's own flags, which stay. Raises
    `UserError` for a flag that is neither's, naming the nearest, and for a value that is missing or
    one too many.
    """
    remaining, arguments = argv[:1], argv[1:]
    given: dict[str, tuple[str, ...]] = {}
    while arguments:
        argument = arguments.pop(0)
        if argument == "--":
            return [*remaining, argument, *arguments], given
        name, equals, value = argument.removeprefix("--").partition("=")
        found = meaning(name) if argument.startswith("--") and name not in own else None
        if found is None:
            if argument.startswith("--") and not _is_own(name, own):
                raise _unknown(name, own)
            remaining.append(argument)
            continue
        if equals and found.form == "switch":
            raise UserError(
                f"--{name} takes no value, got {value!r}: leave it out to switch it off"
            )
        values = [value] if equals else arguments[: _count(arguments, found.form)]
        if not values and found.form in ("value", "values"):
            raise UserError(f"--{name} needs a value: --{name} VALUE")
        given[name] = tuple(values)
        del arguments[: 0 if equals else len(values)]
    return remaining, given


def _count(arguments: list[str], form: Form) -> int:
    """How many values follow a flag: those up to the next flag, and one where it takes one."""
    flags = (i for i, argument in enumerate(arguments) if argument.startswith("--"))
    following = next(flags, len(arguments))
    return {"switch": 0, "value": min(following, 1)}.get(form, following)


def _is_own(name: str, own: Container[str]) -> bool:
    """As absl has them: a flag, a negated switch, or an override of the config."""
    return name in own or name.removeprefix("no") in own or name.startswith("config.")


def _unknown(name: str, own: Collection[str]) -> UserError:
    hint = nearest(name, [*TABLE, *own]).replace("Did you mean ", "Did you mean --")
    return UserError(f"--{name} is no flag of mmrl.train and none of slime's that it knows.{hint}")
