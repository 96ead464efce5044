"""The seccomp filter of namespaces boxes: system calls that a command may not make, as a BPF program.

It takes away what a command on a task has no use for and what holes in kernels are reached by: other
processes' memory, keyrings, BPF, io_uring, new namespaces, mounts, modules, rare socket families, typing into
a terminal. What is denied fails with an error that programs know how to live with; a call made in the way of
another architecture, whose numbers mean something else, ends the process. Nothing here touches the kernel:
namespaces_launcher.py loads the program, or bubblewrap does.
"""

import errno
import os
import struct
from collections.abc import Iterable
from pathlib import Path

# From <linux/audit.h>, <linux/seccomp.h>, <linux/bpf_common.h>, <linux/sched.h>, <asm-generic/ioctls.h>.
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
KILL_PROCESS, RETURN_ERRNO, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
LOAD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
AT_NUMBER, AT_ARCH, AT_ARGUMENTS = 0, 4, 16
X32_BIT = 0x40000000
INSTRUCTION = struct.Struct("=HBBI")
NEW_NAMESPACE_FLAGS = 0x7E020000
"""CLONE_NEW* for user, mount, PID, network, IPC, UTS and cgroup namespaces."""
CLONE_NEWTIME = 0x80
"""For `unshare` alone: `clone` has its exit signal there."""
SOCKET_FAMILIES = (1, 2, 10)
"""AF_UNIX, AF_INET, AF_INET6: what programs use among themselves in a box without a network."""
TERMINAL_REQUESTS = (0x5412, 0x541C, 0x5423)
"""TIOCSTI and TIOCLINUX type into a terminal, TIOCSETD loads a line discipline's module."""

DENIED: dict[str, tuple[int | None, int | None]] = {
    # Name: its number on x86-64 and on arm64, None where it does not exist.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "setns": (308, 268),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "create_module": (174, None),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    "lookup_dcookie": (212, 18),
    "nfsservctl": (180, 42),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "_sysctl": (156, None),
}
"""Fail with EPERM whatever their arguments are."""
JUDGED_BY_ARGUMENT = {
    "unshare": (272, 97),
    "clone": (56, 220),
    "clone3": (435, 435),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "ioctl": (16, 29),
}
Instruction = tuple[int, int, int, int]
"""Operation, how many instructions to skip where it is true and where not, operand."""


def why_absent() -> str | None:
    """None where this kernel filters system calls and we know their numbers; else the reason."""
    machine = os.uname().machine
    if machine not in AUDIT_ARCH:
        return f"the numbers of system calls on {machine} are not known here"
    if not Path("/proc/sys/kernel/seccomp/actions_avail").exists():
        return "this kernel has no seccomp filters (CONFIG_SECCOMP_FILTER)"
    return None


def number_of(name: str, machine: str) -> int | None:
    """A call's number on `x86_64` or `aarch64`; None where that has no such call."""
    return (DENIED | JUDGED_BY_ARGUMENT)[name][list(AUDIT_ARCH).index(machine)]


def filter_program(machine: str) -> bytes:
    """The program for `x86_64` or `aarch64` as the kernel takes it: an array of `struct sock_filter`."""
    instructions = [
        (LOAD, 0, 0, AT_ARCH),
        (JUMP_EQUAL, 1, 0, AUDIT_ARCH[machine]),
        (RETURN, 0, 0, KILL_PROCESS),
        (LOAD, 0, 0, AT_NUMBER),
    ]
    if machine == "x86_64":
        # The x32 way to call shares the architecture's name and has numbers of its own, all above this bit.
        instructions += [(JUMP_AT_LEAST, 0, 1, X32_BIT), _fail(errno.ENOSYS)]
    for name in DENIED:
        number = number_of(name, machine)
        if number is not None:
            instructions += [(JUMP_EQUAL, 0, 1, number), _fail(errno.EPERM)]
    for name, verdict in _verdicts().items():
        number = number_of(name, machine)
        assert number is not None
        instructions += [(JUMP_EQUAL, 0, len(verdict), number), *verdict]
    instructions.append((RETURN, 0, 0, ALLOW))
    return b"".join(INSTRUCTION.pack(*instruction) for instruction in instructions)


def _verdicts() -> dict[str, list[Instruction]]:
    """For each call that its arguments decide on: instructions that end in a return.

    Only the lower half of an argument is looked at, as the kernel itself does with these: a filter that
    compared all 64 bits would be passed by setting one that the kernel ignores.
    """
    family = [_load_argument(0), *_returns(SOCKET_FAMILIES, ALLOW), _fail(errno.EAFNOSUPPORT)]
    return {
        "unshare": _deny_bits(0, NEW_NAMESPACE_FLAGS | CLONE_NEWTIME),
        "clone": _deny_bits(0, NEW_NAMESPACE_FLAGS),
        # Its flags lie in memory, where a filter cannot look; C libraries fall back to clone.
        "clone3": [_fail(errno.ENOSYS)],
        "socket": family,
        "socketpair": family,
        "ioctl": [
            _load_argument(1),
            *_returns(TERMINAL_REQUESTS, RETURN_ERRNO | errno.EPERM),
            (RETURN, 0, 0, ALLOW),
        ],
    }


def _deny_bits(argument: int, bits: int) -> list[Instruction]:
    test = (JUMP_ANY_BIT, 0, 1, bits)
    return [_load_argument(argument), test, _fail(errno.EPERM), (RETURN, 0, 0, ALLOW)]


def _returns(values: Iterable[int], action: int) -> list[Instruction]:
    """The action for each of these values; falls through for all others."""
    return [part for value in values for part in ((JUMP_EQUAL, 0, 1, value), (RETURN, 0, 0, action))]


def _load_argument(index: int) -> Instruction:
    return (LOAD, 0, 0, AT_ARGUMENTS + 8 * index)  # both architectures are little-endian


def _fail(number: int) -> Instruction:
    return (RETURN, 0, 0, RETURN_ERRNO | number)
