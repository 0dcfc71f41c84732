"""Confines itself and becomes another program. `mmrl.sandbox` starts it; it needs no mmrl.

    python -I -S guard.py FD COMMAND…    # FD holds a JSON object, by `Launch.orders`

Without namespaces it first becomes the supervisor of the program: orphans come to it, and it ends
what is left when the program has ended, when it gets SIGTERM or when its own parent has died.
The pipe `report` gets "ready" when all is in force, or what was in the way; then it is closed.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import time

READY = b"ready"
LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER = 1, 8, 22, 36
PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 38, 47
CAP_DAC_READ_SEARCH = 2

# Landlock: linux/landlock.h; the numbers of its system calls are the same on every architecture.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REFER, TRUNCATE, IOCTL_DEVICE = 1 << 13, 1 << 14, 1 << 15
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEVICE
READ = EXECUTE | READ_FILE | READ_DIR
TRUNCATION_ABI = 3  # from here on, files that may not be written may not be cut either
SCOPED_ABI = 6  # from here on, signals and abstract sockets stay inside


def main() -> None:
    with open(int(sys.argv[1])) as file:
        spec = json.load(file)
    os.set_inheritable(spec["report"], False)
    try:
        if spec["supervise"]:
            supervise(spec, sys.argv[2:])
        else:
            become(spec, sys.argv[2:])
    except BaseException as error:  # noqa: BLE001
        os.write(spec["report"], f"{type(error).__name__}: {error}".encode())
    os._exit(125)


def become(spec: dict, command: list[str]) -> None:
    """Confines this process and executes `command`. Returns never."""
    os.closerange(3, spec["report"])
    os.closerange(spec["report"] + 1, 65536)
    beside = own_processes() if spec["shares_user"] else 0
    if spec["uid"] is not None:
        change_user(spec["uid"], spec["search"])
    call(LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    os.chdir(spec["scratch"])
    for path, text in spec["files"].items():
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path, "w", encoding="utf-8", errors="surrogatepass", newline="") as file:
            file.write(text)
    for name, value in spec["rlimits"].items():
        value += beside if name == "RLIMIT_NPROC" else 0
        limit(getattr(resource, name), value)
    if spec["readable"] is not None:
        landlock(spec["readable"], spec["writable"])
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them, and a child would inherit it
    if spec["seccomp"]:
        seccomp(bytes.fromhex(spec["seccomp"]))
    os.write(spec["report"], READY)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode(errors="replace"))
        os._exit(126 if isinstance(error, PermissionError) else 127)


def supervise(spec: dict, command: list[str]) -> None:
    """Runs `command` confined in a child, ends all its descendants, and exits as it did."""
    call(LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "subreaper")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})
    call(LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0), "death signal")
    if os.getppid() != spec["parent"]:
        os._exit(125)
    scoped = spec["readable"] is not None and landlock_abi() >= SCOPED_ABI
    if scoped:
        call(LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
        rules = ruleset(REFER, scoped=True)
        allow(rules, "/", REFER)  # any rules at all would forbid to move files between folders
        restrict(rules)
        if reaches(spec["parent"]):
            raise OSError("landlock does not keep signals inside")
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        try:
            become(spec, command)
        except BaseException as error:  # noqa: BLE001
            os.write(spec["report"], f"{type(error).__name__}: {error}".encode())
        os._exit(125)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(spec["report"])
    code = exit_code(child)
    end_all(scoped, spec["uid"])
    os._exit(code)


def exit_code(child: int) -> int:
    """How `child` ended, 128 + n after signal n; returns early when this process gets SIGTERM."""
    while signal.sigwait({signal.SIGTERM, signal.SIGCHLD}) == signal.SIGCHLD:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                if ended[0] == child:
                    code = os.waitstatus_to_exitcode(ended[1])
                    return code if code >= 0 else 128 - code
    return 128 + signal.SIGTERM


def end_all(scoped: bool, uid: int | None) -> None:
    """Kills all descendants and waits for them. kill(-1) is one step, which no fork outruns."""
    while True:
        with contextlib.suppress(OSError):
            if scoped:
                os.kill(-1, signal.SIGKILL)
            elif uid is not None:
                end_user(uid)
            else:
                for pid in descendants(os.getpid()):
                    os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        except ChildProcessError:
            return
        time.sleep(0.001)


def end_user(uid: int) -> None:
    """Kills all processes of user `uid`, which is nobody else's."""
    if os.fork() == 0:
        try:
            os.setresuid(uid, uid, uid)
            os.kill(-1, signal.SIGKILL)
        finally:
            os._exit(0)


def descendants(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                for child in map(int, file.read().split()):
                    found += [child, *descendants(child)]
    return found


def own_processes() -> int:
    """Processes and threads of this user, which a limit on processes counts as well."""
    total = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{pid}").st_uid == os.getuid():
                total += len(os.listdir(f"/proc/{pid}/task"))
    return total


def change_user(uid: int, search: bool) -> None:
    """Gives up root for good; `search` keeps the right to go through closed folders.

    That right is given only together with landlock, which says what may be read.
    """
    if search:
        call(LIBC.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0), "keep capabilities")
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    bit = 1 << CAP_DAC_READ_SEARCH if search else 0
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    call(LIBC.capset(header, (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)), "capabilities")
    if search:
        call(LIBC.prctl(PR_CAP_AMBIENT, 2, CAP_DAC_READ_SEARCH, 0, 0), "ambient capability")


def limit(kind: int, value: int) -> None:
    _, most = resource.getrlimit(kind)
    value = value if most == resource.RLIM_INFINITY else min(value, most)
    resource.setrlimit(kind, (value, value))


def landlock_abi() -> int:
    """The version of landlock, below 1 where there is none."""
    return LIBC.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1)


def landlock(readable: list[str], writable: list[str]) -> None:
    """From now on only these files and what is below these folders, no TCP, no signals outside."""
    everything = handled_files()
    rules = ruleset(everything, network=True, scoped=True)
    for path in readable:
        allow(rules, path, READ)
    for path in ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"):
        allow(rules, path, READ_FILE | WRITE_FILE | TRUNCATE & everything)
    for path in writable:
        allow(rules, path, everything)
    restrict(rules)


def handled_files() -> int:
    abi = landlock_abi()
    return (1 << (13 if abi < 2 else 14 if abi < 3 else 15 if abi < 5 else 16)) - 1


def ruleset(files: int, network: bool = False, scoped: bool = False) -> int:
    """A descriptor of rules that forbid these accesses, as far as the kernel knows them."""
    abi = landlock_abi()
    tcp = 3 if network and abi >= 4 else 0  # bind and connect
    scope = 3 if scoped and abi >= SCOPED_ABI else 0  # abstract unix sockets and signals
    attributes = (ctypes.c_uint64 * 3)(files, tcp, scope)
    size = ctypes.c_size_t(8 if abi < 4 else 16 if abi < SCOPED_ABI else 24)
    return call(LIBC.syscall(CREATE_RULESET, attributes, size, 0), "landlock rules")


def allow(rules: int, path: str, access: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # what is not there needs no right
        return
    if not os.path.isdir(path):
        access &= OF_FILES

    class Rule(ctypes.Structure):
        _pack_ = 1
        _fields_ = [("access", ctypes.c_uint64), ("descriptor", ctypes.c_int32)]

    rule = Rule(access, descriptor)
    call(LIBC.syscall(ADD_RULE, rules, 1, ctypes.byref(rule), 0), f"landlock rule of {path}")
    os.close(descriptor)


def restrict(rules: int) -> None:
    call(LIBC.syscall(RESTRICT_SELF, rules, 0), "landlock")
    os.close(rules)


def reaches(pid: int) -> bool:
    """Whether a signal of this process would get to `pid`."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return False
    return True


def seccomp(program: bytes) -> None:
    """Loads a filter, an array of `struct sock_filter`, for this process and its descendants."""

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    code = ctypes.create_string_buffer(program, len(program))
    filters = Program(len(program) // 8, ctypes.cast(code, ctypes.c_void_p))
    call(LIBC.prctl(PR_SET_SECCOMP, 2, ctypes.byref(filters), 0, 0), "seccomp")


def call(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


if __name__ == "__main__":
    main()
