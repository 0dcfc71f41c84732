"""Programs that try to get at what is outside of the sandbox, and succeed where there is none."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import mmrl
from mmrl.sandbox import run_python

KERNEL = "messages of the kernel"
# Each prints ESCAPED if it succeeds; {…} are facts about what is outside.
READING = {
    "environment variables": "found = os.environ['MMRL_TEST_SECRET']",
    "a file": "found = open('{secret}').read()",
    "a file by a symbolic link": "os.symlink('{secret}', 'l'); found = open('l').read()",
    "a file by a hard link": "os.link('{secret}', 'l'); found = open('l').read()",
    "a file by way of /proc": "found = open('/proc/self/cwd/../../..{secret}').read()",
    "a file by way of another process": "found = open('/proc/{me}/root{secret}').read()",
    "a file through another program": "found = subprocess.check_output(['cat', '{secret}'])",
    "names in a folder": "found = os.listdir('{folder}')",
    "other programs' scratch folders": "found = os.listdir(os.path.dirname('{folder}'))",
    "the passwords": "found = open('/etc/shadow').read()",
    "the environment of its parent": "found = open('/proc/{me}/environ', 'rb').read()",
    "the memory of another process": "found = open('/proc/{victim}/mem', 'rb')",
    "the source of mmrl": "found = open('{mmrl}').read()",
    KERNEL: "found = os.open('/dev/kmsg', os.O_RDONLY)",
}
WRITING = {
    "a new file": "open('{folder}/new', 'w')",
    "a file that every user may write": "open('{secret}', 'a')",
    "a file that is cut to nothing": "os.truncate('{secret}', 0)",
    "a file that is cut by reading it": "os.open('{secret}', os.O_RDONLY | os.O_TRUNC)",
    "a file that is removed": "os.remove('{secret}')",
    "a file that is moved": "os.rename('{secret}', '{folder}/moved')",
    "the mode of a file": "os.chmod('{secret}', 0o600)",
    "the time of a file": "os.utime('{secret}', (0, 0))",
    "the source of mmrl": "open('{mmrl}', 'a')",
    "a package of this Python": "open('{packages}/new.py', 'x'); os.remove('{packages}/new.py')",
    "a file by a symbolic link": "os.symlink('{secret}', 'l'); open('l', 'a')",
    "settings of the kernel": "os.open('/proc/sys/kernel/hostname', os.O_WRONLY)",
    "the memory of another process": "os.open('/proc/{victim}/mem', os.O_WRONLY)",
}
NETWORK = {
    "TCP": "socket.create_connection(('127.0.0.1', {tcp}), 2)",
    "UDP": "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {udp}))",
    "a unix socket": "socket.socket(socket.AF_UNIX).connect('{folder}/unix')",
    "an abstract unix socket": "socket.socket(socket.AF_UNIX).connect('\\0{abstract}')",
    "a unix socket from one end of a pair": (
        "socket.socketpair(type=socket.SOCK_DGRAM)[0].sendto(b'x', '{folder}/datagrams')"
    ),
    "a server": "socket.create_server(('127.0.0.1', 0))",
    "netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
}
PROCESSES = {
    "a signal to its parent": "os.kill({me}, 0)",
    "a signal to another process": "os.kill({victim}, signal.SIGKILL)",
    "a signal to another process by its descriptor": (
        "signal.pidfd_send_signal(os.pidfd_open({victim}), signal.SIGKILL)"
    ),
    "ptrace": "assert LIBC.ptrace(16, {victim}, 0, 0) == 0",  # PTRACE_ATTACH
    "limits of another process": "resource.prlimit({victim}, resource.RLIMIT_NOFILE, (9, 9))",
    "priority of another process": "os.setpriority(os.PRIO_PROCESS, {victim}, 19)",
    "processors of another process": "os.sched_setaffinity({victim}, [0])",
}
# The last ones change the machine for everybody, so they are tried in the sandbox only.
RIGHTS = {
    "a higher limit": "resource.setrlimit(resource.RLIMIT_NPROC, (9999, 9999))",
    "programs that run as their owner": "assert LIBC.prctl(39, 0, 0, 0, 0) == 0",  # no_new_privs
    "namespaces": "assert LIBC.unshare(0x10000000) == 0",  # CLONE_NEWUSER
    "devices": "os.mknod('device', 0o600 | stat.S_IFCHR, os.makedev(1, 1))",
    "another root": "os.chroot('/usr')",
    "memory that is no file": "os.memfd_create('x')",
    "io_uring": "assert LIBC.syscall(425, 1, ctypes.create_string_buffer(120)) >= 0",
}
MACHINE = {
    "root's rights": "os.setuid(0)",
    "a mount": "assert LIBC.mount(b'none', b'/scratch', b'tmpfs', 0, None) == 0",
    "the clock": "time.clock_settime(time.CLOCK_REALTIME, time.time())",
    "the name of the machine": "socket.sethostname('x')",
    "swap": "assert LIBC.swapoff(b'/swapfile') == 0 or ctypes.get_errno() != 1",
    "a kernel module": "assert LIBC.delete_module(b'x', 0) == 0 or ctypes.get_errno() != 1",
}
PROGRAM = """
import ctypes, os, resource, signal, socket, stat, subprocess, sys, time
LIBC = ctypes.CDLL(None, use_errno=True)
try:
    found = True
    {attempt}
except Exception as error:
    print("held:", error)
else:
    print("ESCAPED" if found else "nothing")
"""


@pytest.fixture
def outside(open_folder, victim, monkeypatch):
    """Facts about what a program could reach."""
    monkeypatch.setenv("MMRL_TEST_SECRET", "secret")
    (open_folder / "secret").write_text("secret")
    os.chmod(open_folder / "secret", 0o666)
    name = f"mmrl-test-{os.getpid()}"
    inet, unix = socket.AF_INET, socket.AF_UNIX
    addresses = {
        "tcp": (inet, socket.SOCK_STREAM, ("127.0.0.1", 0)),
        "udp": (inet, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
        "unix": (unix, socket.SOCK_STREAM, f"{open_folder}/unix"),
        "datagrams": (unix, socket.SOCK_DGRAM, f"{open_folder}/datagrams"),
        "abstract": (unix, socket.SOCK_STREAM, f"\0{name}"),
    }
    servers = {}
    for key, (family, form, address) in addresses.items():
        servers[key] = socket.socket(family, form)
        servers[key].bind(address)
        if form == socket.SOCK_STREAM:
            servers[key].listen()
    for path in ("unix", "datagrams"):
        os.chmod(open_folder / path, 0o777)
    yield {
        "folder": open_folder,
        "secret": open_folder / "secret",
        "me": os.getpid(),
        "victim": victim.pid,
        "mmrl": mmrl.__file__,
        "packages": next(p for p in sys.path if p.endswith("site-packages")),
        "abstract": name,
        "tcp": servers["tcp"].getsockname()[1],
        "udp": servers["udp"].getsockname()[1],
    }
    for server in servers.values():
        server.close()


def attempts(*groups):
    return [pytest.param(code, id=name) for group in groups for name, code in group.items()]


def program(attempt, outside):
    return PROGRAM.format(attempt=attempt.format(**outside))


@pytest.mark.parametrize("attempt", attempts(READING, WRITING, NETWORK, PROCESSES, RIGHTS, MACHINE))
def test_a_confined_program_cannot_reach(attempt, kind, outside, victim):
    if kind == "user" and attempt in [*READING.values(), *WRITING.values()]:
        pytest.skip("without landlock and namespaces, what every user may read and write is open")
    execution = run_python(program(attempt, outside))
    assert execution.stdout.startswith("held:"), execution
    assert victim.poll() is None
    assert Path(outside["secret"]).read_text() == "secret"


@pytest.mark.parametrize("attempt", attempts(READING, WRITING, NETWORK, PROCESSES, RIGHTS))
def test_a_program_that_is_not_confined_can_reach(attempt, outside, tmp_path, monkeypatch):
    if os.geteuid() != 0:
        pytest.skip("much of it only for root")
    outside = outside | {"mmrl": tmp_path / "source.py", "packages": tmp_path}
    outside["mmrl"].write_text("source")
    command = [sys.executable, "-c", program(attempt, outside)]
    monkeypatch.chdir(outside["folder"])
    if "/proc/self/cwd" in attempt:
        depth = str(outside["folder"]).count("/")
        command[-1] = command[-1].replace("/../../..", "/.." * depth)
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20)
    if ended.stdout.startswith("held:") and attempt in [*RIGHTS.values(), READING[KERNEL]]:
        pytest.skip(f"this machine forbids it to root as well: {ended.stdout}")
    assert ended.stdout == "ESCAPED\n", ended
