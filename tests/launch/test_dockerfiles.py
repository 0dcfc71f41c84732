"""The images' recipes: files exist, versions are those of constraints.txt, commands are sound."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "launch" / "Dockerfile.tpu", ROOT / "launch" / "Dockerfile.gpu"]


def instructions(path: Path) -> list[tuple[str, str]]:
    """[(instruction, arguments)] without comments, continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_is_copied_exists_and_instructions_are_dockers(path):
    parts = instructions(path)
    assert {name for name, _ in parts} <= {"FROM", "WORKDIR", "COPY", "RUN", "ENV", "CMD"}
    copied = [word for name, text in parts if name == "COPY" for word in text.split()[:-1]]
    assert copied and all((ROOT / word).exists() for word in copied)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_versions_are_those_that_are_tested(path):
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )  # fmt: skip
    wanted = re.findall(r"'(\w+)(?:\[\w+\])?==([\d.]+)'", path.read_text())
    assert wanted and all(pinned[name] == version for name, version in wanted)
    assert "--constraint constraints.txt" in path.read_text()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_commands_pass_shellcheck(path, tmp_path):
    script = tmp_path / "run.sh"
    script.write_text("\n".join(text for name, text in instructions(path) if name == "RUN") + "\n")
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, "--shell=sh", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_shell_stands_between_sigterm_and_the_command(path):
    (command,) = [text for name, text in instructions(path) if name == "CMD"]
    assert command.startswith('["python", ')
