"""What processes tell each other: three of them, and one alone."""

import json
import socket
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from subprocesses import environment

from mmrl.processes import any_process, everywhere, exchange, gather_rows, own_rows, share

PROCESSES = 3


@pytest.fixture(scope="module")
def told() -> list[dict]:
    """What each of three processes had in the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = f"--coordinator=127.0.0.1:{port}", f"--process_count={PROCESSES}"
    members = [
        subprocess.Popen(
            [sys.executable, "-m", "exchange_member", *place, f"--process_id={number}"],
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(PROCESSES)
    ]
    try:
        texts = [member.communicate(timeout=240)[0] for member in members]
    finally:
        for member in members:
            member.kill()
    assert [member.returncode for member in members] == [0] * PROCESSES
    lines = [next(x for x in text.splitlines() if x[:2] == f"{i} ") for i, text in enumerate(texts)]
    return [json.loads(line[2:]) for line in lines]


def test_shares_are_disjoint_consecutive_and_complete(told):
    assert [one["share"] for one in told] == [[0, 1, 2], [3, 4, 5], [6]]


def test_all_learn_the_values_of_all_in_their_order(told):
    expected = [
        {"text": "ü" * 10**number, "process": number, "third": 1 / 3} for number in range(PROCESSES)
    ]
    assert [one["exchange"] for one in told] == [expected] * PROCESSES


def test_rows_of_different_numbers_are_gathered_in_order(told):
    assert [one["gather"] for one in told] == [[[1, 1], [2, 2], [2, 2]]] * PROCESSES


def test_each_has_its_share_of_rows_that_lie_elsewhere(told):
    """Whatever the order of the devices, and where processes do not divide the rows."""
    for one in told:
        assert one["own"]["rows"] == [[i, 10 * i] for i in one["share"]]
        assert one["own"]["host"] == one["share"]
    assert [one["few"] for one in told] == [1, 1, 0]


def test_whole_arrays_are_everywhere(told):
    expected = [[[i, 10 * i] for i in range(9)], [0, 1, 2]]
    assert [one["everywhere"] for one in told] == [expected] * PROCESSES


def test_one_flag_is_enough(told):
    assert [one["any"] for one in told] == [[True, False]] * PROCESSES


def test_a_process_alone_has_everything():
    assert share(7) == range(7)
    assert exchange("a") == ["a"]
    assert any_process(True) and not any_process(False)
    rows = np.arange(6).reshape(3, 2)
    assert gather_rows(rows) is rows
    for function in (own_rows, everywhere):
        assert function({"x": jnp.asarray(rows)})["x"].tolist() == rows.tolist()
