"""`sbatch --test-only` of the tests: reads #SBATCH lines as slurm.schedmd.com/sbatch.html says.

A line that begins with #SBATCH holds options, split at spaces outside quotes; the first line that
is neither blank nor a comment ends them. Unknown options and values of a wrong form are errors.
"""

import re
import shlex
import sys
from pathlib import Path

NUMBER = r"[1-9]\d*"
WORD = r"[\w.,@/+-]+"
OPTIONS = {
    "account": WORD,
    "cpus-per-task": NUMBER,
    "exclusive": None,
    "gpus-per-node": rf"([a-z]\w*:)?{NUMBER}",
    "job-name": WORD,
    "mem": r"\d+[KMGT]?",
    "nodes": rf"{NUMBER}(-{NUMBER})?",
    "ntasks-per-node": NUMBER,
    "open-mode": "append|truncate",
    "output": r"[\w.,@/+%-]+",
    "partition": WORD,
    "qos": WORD,
    "requeue": None,
    "reservation": WORD,
    # Minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].
    "time": r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}",
    "signal": r"([RB]+:)?(\d+|[A-Z]+\d?)(@\d{1,5})?",
}


def directives(script: str) -> dict[str, str | None]:
    """{option: value} of a batch script; ValueError for what sbatch would refuse."""
    if not script.startswith("#!"):
        raise ValueError("This does not look like a batch script: the first line must be #!…")
    found: dict[str, str | None] = {}
    for line in script.splitlines():
        if line.strip() and not line.startswith("#"):
            break
        if not line.startswith("#SBATCH"):
            continue
        for word in shlex.split(line.removeprefix("#SBATCH"), comments=True):
            name, equals, value = word.removeprefix("--").partition("=")
            if not word.startswith("--") or name not in OPTIONS:
                raise ValueError(f"sbatch: unrecognized option '{word}'")
            form = OPTIONS[name]
            if bool(equals) != (form is not None) or (form and not re.fullmatch(form, value)):
                raise ValueError(f"Invalid --{name} specification: {value}")
            found[name] = value if equals else None
    signal_time = re.search(r"@(\d+)$", found.get("signal") or "")
    if signal_time and int(signal_time[1]) > 65_535:
        raise ValueError("Invalid --signal specification")
    return found


def main(arguments: list[str]) -> None:
    (path,) = [word for word in arguments if word != "--test-only"]
    try:
        directives(Path(path).read_text())
    except ValueError as error:
        sys.exit(f"sbatch: error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
