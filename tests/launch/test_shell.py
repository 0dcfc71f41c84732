"""Quoted words come back as they were, and on one line."""

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from launch_tools import AWKWARD

from launch import shell

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@settings(max_examples=40, deadline=None)
@given(st.lists(TEXT | st.sampled_from(AWKWARD), max_size=8))
def test_bash_reads_back_every_text_from_one_line(words):
    line = f"printf '%s\\0' {shell.join(words)}" if words else "true"
    assert len(line.splitlines()) == 1
    done = subprocess.run(["bash", "-c", line], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == "".join(f"{word}\0" for word in words)


def test_a_nul_is_refused():
    with pytest.raises(ValueError, match="NUL"):
        shell.quote("a\0b")
