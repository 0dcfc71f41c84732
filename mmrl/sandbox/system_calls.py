"""The seccomp filter: which system calls a confined program may not make. By libseccomp.

Everything else is allowed, so that compilers and numerical libraries run. Names that this
machine's architecture does not have are left out.
"""

import ctypes
import errno
import functools
import os
import socket
import stat

# A socket of any kind would be a way out; pairs of connected stream sockets stay, for asyncio.
NETWORK = (
    "socket connect bind listen accept accept4 io_uring_setup io_uring_enter io_uring_register"
)
MOUNTS = (
    "mount umount umount2 pivot_root chroot unshare setns open_tree move_mount fsopen fsconfig "
    "fsmount fspick mount_setattr swapon swapoff quotactl quotactl_fd name_to_handle_at "
    "open_by_handle_at fanotify_init"
)
KERNEL = (
    "kexec_load kexec_file_load init_module finit_module delete_module bpf perf_event_open "
    "userfaultfd add_key request_key keyctl acct reboot syslog lookup_dcookie iopl ioperm "
    "modify_ldt vhangup sethostname setdomainname settimeofday clock_settime clock_settime64 "
    "clock_adjtime clock_adjtime64 adjtimex stime"
)
OTHER_PROCESSES = (
    "ptrace process_vm_readv process_vm_writev process_madvise kcmp pidfd_getfd setpriority "
    "ioprio_set sched_setaffinity sched_setattr sched_setparam sched_setscheduler migrate_pages "
    "move_pages"
)
# Memory that belongs to no process or no file, which therefore no limit counts.
LOOSE_MEMORY = "memfd_create memfd_secret shmget shmat shmctl semget msgget mq_open"
# Where the program runs as the user who started it, and no namespace stands between.
SIGNALS = "kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal"
METADATA = (
    "chmod fchmod fchmodat chown fchown fchownat lchown utime utimes futimesat utimensat "
    "utimensat_time64 setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr"
)
NEW_METADATA = (452, 463, 466, 469)  # fchmodat2, setxattrat, removexattrat, file_setattr

# Before its third version landlock let a program cut files that it may not write.
TRUNCATION = "truncate truncate64 openat2"

NAMESPACE_FLAGS = 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000, 0x20000
SOCKET_TYPES = range(socket.SOCK_STREAM + 1, 16)
ALLOW = 0x7FFF0000
NOT_EQUAL, MASKED_EQUAL = 1, 7  # enum scmp_compare


class _Comparison(ctypes.Structure):
    _fields_ = [
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    ]


@functools.cache
def filter_program(*, signals: bool, metadata: bool, truncation: bool) -> bytes | None:
    """Instructions for PR_SET_SECCOMP, None without libseccomp (Debian's libseccomp2).

    Whether signals, changes of modes and owners, and cutting a file by its name are allowed.
    """
    try:
        library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError:
        return None
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ALLOW))
    groups = [NETWORK, MOUNTS, KERNEL, OTHER_PROCESSES, LOOSE_MEMORY]
    groups += ([] if signals else [SIGNALS]) + ([] if metadata else [METADATA])
    groups += [] if truncation else [TRUNCATION]
    numbers = [_number(library, name) for name in " ".join(groups).split()]
    for number in [*numbers, *(() if metadata else NEW_METADATA)]:
        _refuse(library, context, number)
    for name, argument in () if truncation else (("open", 1), ("openat", 2)):
        comparison = (argument, MASKED_EQUAL, os.O_TRUNC | os.O_ACCMODE, os.O_TRUNC | os.O_RDONLY)
        _refuse(library, context, _number(library, name), comparison)
    _refuse(library, context, _number(library, "clone3"), code=errno.ENOSYS)  # its flags lie hidden
    for flag in NAMESPACE_FLAGS:
        _refuse(library, context, _number(library, "clone"), (0, MASKED_EQUAL, flag, flag))
    pair = _number(library, "socketpair")
    _refuse(library, context, pair, (0, NOT_EQUAL, socket.AF_UNIX, 0))
    for kind in SOCKET_TYPES:
        _refuse(library, context, pair, (1, MASKED_EQUAL, 15, kind))
    _refuse(library, context, _number(library, "prlimit64"), (0, NOT_EQUAL, 0, 0))
    for device in (stat.S_IFCHR, stat.S_IFBLK):
        for name, argument in (("mknod", 1), ("mknodat", 2)):
            comparison = (argument, MASKED_EQUAL, 0o170000, device)
            _refuse(library, context, _number(library, name), comparison)
    try:
        return _exported(library, context)
    finally:
        library.seccomp_release(context)


def _number(library: ctypes.CDLL, name: str) -> int:
    return library.seccomp_syscall_resolve_name(name.encode())


def _refuse(
    library: ctypes.CDLL,
    context: ctypes.c_void_p,
    number: int,
    *comparisons: tuple[int, int, int, int],
    code: int = errno.EPERM,
) -> None:
    if number < 0:  # not a call of this architecture, or newer than the library
        return
    array = (_Comparison * len(comparisons))(*(_Comparison(*c) for c in comparisons))
    action = ctypes.c_uint32(0x00050000 | code)
    result = library.seccomp_rule_add_array(context, action, number, len(comparisons), array)
    if result < 0:
        raise OSError(-result, f"seccomp rule of system call {number}: {os.strerror(-result)}")


def _exported(library: ctypes.CDLL, context: ctypes.c_void_p) -> bytes:
    with open(os.memfd_create("seccomp"), "r+b") as file:
        result = library.seccomp_export_bpf(context, file.fileno())
        if result < 0:
            raise OSError(-result, f"seccomp: {os.strerror(-result)}")
        file.seek(0)
        return file.read()
