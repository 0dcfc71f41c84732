"""The confinement in force is the strongest that works, is named, and is never none by itself."""

import os

import pytest

from mmrl import sandbox
from mmrl.errors import UserError
from mmrl.sandbox import kinds, launch
from mmrl.sandbox.system_calls import filter_program


@pytest.fixture
def working(monkeypatch):
    """Makes the kinds that are given work and no others."""
    monkeypatch.delenv("MMRL_SANDBOX", raising=False)

    def only(*names):
        monkeypatch.setattr(
            kinds, "obstacle", lambda kind: None if kind in names else f"{kind}: broken"
        )

    return only


def test_the_strongest_that_works_is_chosen(working):
    working("landlock", "bubblewrap", "user")
    assert kinds.chosen() == "bubblewrap"
    working("user", "landlock")
    assert kinds.chosen() == "landlock"
    working("user")
    assert kinds.chosen() == "user"


def test_nothing_runs_unconfined_unless_told_to(working, monkeypatch):
    working()
    for call in (sandbox.confinement, lambda: sandbox.run_python("print(1)")):
        with pytest.raises(UserError, match="bubblewrap: broken.*MMRL_SANDBOX=none"):
            call()
    monkeypatch.setenv("MMRL_SANDBOX", "none")
    assert sandbox.confinement().startswith("none:")
    execution = sandbox.run_python("print(1)")
    assert (execution.stdout, execution.confinement) == ("1\n", sandbox.confinement())


def test_a_kind_that_is_asked_for_is_used_or_refused(working, monkeypatch):
    working("bubblewrap")
    monkeypatch.setenv("MMRL_SANDBOX", "landlock")
    with pytest.raises(UserError, match="MMRL_SANDBOX=landlock does not work here"):
        kinds.chosen()
    monkeypatch.setenv("MMRL_SANDBOX", "bublewrap")
    with pytest.raises(UserError, match="Did you mean bubblewrap"):
        kinds.chosen()


def test_a_bwrap_that_fails_is_an_obstacle_and_no_result(tmp_path, monkeypatch):
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: no permissions' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert kinds.obstacle.__wrapped__("bubblewrap") == "bubblewrap: bwrap: no permissions"


@pytest.mark.parametrize("root", [True, False])
def test_bwrap_shows_only_what_is_readable_and_nothing_writable_of_this_machine(root):
    options = launch.bubblewrap(root=root, scratch_bytes=7)
    binds = [options[i + 1] for i, word in enumerate(options) if word == "--ro-bind"]
    assert set(binds) <= {*launch.readable_paths(), str(launch.GUARD)}
    assert not {"--bind", "--dev-bind", "--share-net"} & set(options)
    namespaces = {"--unshare-net", "--unshare-pid", "--unshare-ipc", "--die-with-parent"}
    assert namespaces <= set(options)
    assert ("--unshare-user" in options) != root
    sizes = [options[i + 1] for i, word in enumerate(options) if word == "--size"]
    assert set(sizes) == {"7"}
    home = os.path.expanduser("~")
    assert not any(home == path or home.startswith(f"{path}/") for path in binds)


@pytest.mark.parametrize(
    ("abi", "system_calls", "root", "open_ends"),
    [
        (0, True, True, ["reading and writing where every user may"]),
        (7, True, True, []),
        (4, False, True, ["the network but TCP"]),
        (2, False, True, ["the network"]),
        (2, True, False, ["number of processes"]),
        (4, False, False, ["the network but TCP", "signals", "modes"]),
        (6, False, False, ["the network but TCP", "modes"]),
    ],
)
def test_what_is_not_confined_is_said(abi, system_calls, root, open_ends, monkeypatch):
    monkeypatch.setattr(kinds, "is_root", lambda: root)
    said = ", ".join(kinds.gaps(abi, system_calls))
    for words in ["network but TCP", "signals", "modes", "every user", "number of processes"]:
        if any(words in one for one in open_ends):
            assert words in said
    for one in open_ends:
        assert one in said
    assert ("network" in said) == any("network" in one for one in open_ends)


def test_users_of_executions_differ(monkeypatch):
    users = {launch.new_user() for _ in range(1000)}
    assert len(users) == 1000
    assert min(users) > 1000


def test_a_filter_of_system_calls_is_made_of_instructions_and_grows_with_what_it_refuses():
    loose = filter_program(signals=True, metadata=True, truncation=True)
    if loose is None:
        pytest.skip("no libseccomp")
    strict = filter_program(signals=False, metadata=False, truncation=False)
    assert len(loose) % 8 == 0
    assert len(strict) > len(loose)
