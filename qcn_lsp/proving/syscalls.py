"""Which system calls a sandbox refuses, as the filter that the kernel runs for each of them.

What namespaces do not cover is refused: the kernel's keyrings (a user's tickets and disk keys are
there), sockets to the host of a virtual machine, new namespaces (in one of its own a process may
mount, and so write without limit), and memory that no process shows as its own.
"""

import errno
import functools
import os
import tempfile

_ABSENT = errno.ENOSYS  # as on an older kernel: programs know what to do then
_REFUSED = errno.EPERM
_NO_SUCH = (
    *("clone3", "memfd_create", "memfd_secret", "shmget", "userfaultfd"),
    *("io_uring_setup", "io_uring_enter", "io_uring_register", "bpf", "perf_event_open"),
)
_FORBIDDEN = (
    *("add_key", "request_key", "keyctl"),
    *("setns", "mount", "umount2", "pivot_root", "fsopen", "fsmount", "open_tree", "move_mount"),
    *("mount_setattr", "kexec_load", "kexec_file_load", "init_module", "finit_module"),
    *("delete_module", "swapon", "swapoff", "reboot", "syslog", "acct", "quotactl"),
    *("open_by_handle_at", "name_to_handle_at", "fanotify_init", "lookup_dcookie"),
)
_UNKNOWN = -1
_NEW_NAMESPACES = 0x7E020000 | 0x80  # CLONE_NEWNS, …CGROUP, …UTS, …IPC, …USER, …PID, …NET, …TIME
# AF_UNIX, AF_INET, AF_INET6, AF_NETLINK: each of its own network namespace.
_FAMILIES = (1, 2, 10, 16)
_FIRST_FAMILIES = 64


@functools.cache
def filter_program() -> bytes:
    """Return the filter for `bwrap --seccomp`.

    Raises `ImportError` or `RuntimeError` where the system's libseccomp is missing. What an older
    one has no name for is left out: the attacks tell whether that matters.
    """
    import pyseccomp as seccomp

    program = seccomp.SyscallFilter(seccomp.ALLOW)
    answers = dict.fromkeys(_NO_SUCH, _ABSENT) | dict.fromkeys(_FORBIDDEN, _REFUSED)
    for name, answer in answers.items():
        if seccomp.resolve_syscall(seccomp.Arch.NATIVE, name) != _UNKNOWN:
            program.add_rule(seccomp.ERRNO(answer), name)
    for namespace in (1 << bit for bit in range(32) if _NEW_NAMESPACES >> bit & 1):
        for call in ("unshare", "clone"):
            if call == "clone" and namespace == 0x80:  # there it is part of the exit signal
                continue
            asked = seccomp.Arg(0, seccomp.MASKED_EQ, namespace, namespace)
            program.add_rule(seccomp.ERRNO(_REFUSED), call, asked)
    for family in set(range(_FIRST_FAMILIES)) - set(_FAMILIES):
        # The kernel looks at the lower half of the argument alone, and so has the filter to.
        asked = seccomp.Arg(0, seccomp.MASKED_EQ, 0xFFFFFFFF, family)
        program.add_rule(seccomp.ERRNO(errno.EAFNOSUPPORT), "socket", asked)
    with tempfile.TemporaryFile() as file:
        program.export_bpf(file)
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        return file.read()
