"""The filter's program, run by an interpreter of its own; test_namespaces_walls.py has it in a box."""

import errno
import re
import struct
from pathlib import Path

import pytest

from envs.sandbox import seccomp

MACHINES = ("x86_64", "aarch64")
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
NEWUSER, NEWNET, NEWTIME, SIGCHLD = 0x10000000, 0x40000000, 0x80, 17
THREAD_FLAGS = 0x3D0F00
"""What the C library gives to clone for a thread: memory, files and handlers shared, places for its ids."""
TIOCSTI, TCGETS = 0x5412, 0x5401
HIGH_BIT = 1 << 32
EPERM = seccomp.RETURN_ERRNO | errno.EPERM
ENOSYS = seccomp.RETURN_ERRNO | errno.ENOSYS
EAFNOSUPPORT = seccomp.RETURN_ERRNO | errno.EAFNOSUPPORT


def decide(machine: str, number: int, *arguments: int, arch: int | None = None) -> int:
    """What the kernel would do with a call: its BPF instructions, one by one, over `struct seccomp_data`."""
    arch = seccomp.AUDIT_ARCH[machine] if arch is None else arch
    data = struct.pack("<IIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    program = list(seccomp.INSTRUCTION.iter_unpack(seccomp.filter_program(machine)))
    tests = {0x15: lambda a, k: a == k, 0x35: lambda a, k: a >= k, 0x45: lambda a, k: bool(a & k)}
    at, accumulator = 0, 0
    while True:
        operation, if_true, if_false, operand = program[at]  # IndexError where a jump leaves the program
        at += 1
        if operation == 0x06:
            return operand
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, operand)
        else:
            at += if_true if tests[operation](accumulator, operand) else if_false


def call(machine: str, name: str, *arguments: int) -> int:
    number = seccomp.number_of(name, machine)
    assert number is not None
    return decide(machine, number, *arguments)


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_denied_fails_with_eperm_and_every_other_number_is_allowed(machine: str) -> None:
    denied = {seccomp.number_of(name, machine) for name in seccomp.DENIED}
    judged = {seccomp.number_of(name, machine) for name in seccomp.JUDGED_BY_ARGUMENT}
    for number in range(600):
        if number not in judged:
            assert decide(machine, number) == (EPERM if number in denied else seccomp.ALLOW), number


@pytest.mark.parametrize("machine", MACHINES)
def test_what_the_threat_model_names_is_denied(machine: str) -> None:
    for name in (
        *("ptrace", "add_key", "keyctl", "bpf", "perf_event_open", "userfaultfd", "mount", "umount2"),
        *("pivot_root", "move_mount", "open_tree", "fsopen", "mount_setattr", "setns", "kexec_load"),
        *("kexec_file_load", "init_module", "finit_module", "delete_module", "io_uring_setup"),
        *("io_uring_enter", "io_uring_register", "open_by_handle_at", "process_vm_readv", "pidfd_getfd"),
    ):
        assert call(machine, name) == EPERM, name


@pytest.mark.parametrize("machine", MACHINES)
def test_a_call_in_the_way_of_another_architecture_ends_the_process(machine: str) -> None:
    i386 = 0x40000003
    for arch in (i386, 0, *(seccomp.AUDIT_ARCH[other] for other in MACHINES if other != machine)):
        assert decide(machine, 20, arch=arch) == seccomp.KILL_PROCESS


def test_the_x32_numbers_of_x86_64_do_not_exist() -> None:
    for number in (0x40000000, 0x40000000 | 101, 0x40000000 | 521, 0xFFFFFFFF):
        assert decide("x86_64", number) == ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
def test_processes_and_threads_can_be_made_but_no_namespaces(machine: str) -> None:
    assert call(machine, "clone", SIGCHLD) == seccomp.ALLOW
    assert call(machine, "clone", THREAD_FLAGS) == seccomp.ALLOW
    assert call(machine, "clone3", 0x7FFF0000, 88) == ENOSYS
    assert call(machine, "unshare", 0x400) == seccomp.ALLOW  # CLONE_FILES
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, NEWUSER, 0x20000000, NEWNET):
        assert call(machine, "clone", flag | SIGCHLD) == EPERM, hex(flag)
        assert call(machine, "unshare", flag) == EPERM, hex(flag)
    assert call(machine, "unshare", NEWTIME) == EPERM


@pytest.mark.parametrize("machine", MACHINES)
def test_only_unix_and_internet_sockets_can_be_made(machine: str) -> None:
    for name in ("socket", "socketpair"):
        allowed = {family for family in range(256) if call(machine, name, family, 1) == seccomp.ALLOW}
        assert allowed == {1, 2, 10}, name
        assert call(machine, name, 16, 3) == EAFNOSUPPORT


@pytest.mark.parametrize("machine", MACHINES)
def test_nobody_types_into_a_terminal(machine: str) -> None:
    assert call(machine, "ioctl", 0, TCGETS) == seccomp.ALLOW
    for request in (TIOCSTI, 0x541C, 0x5423):
        assert call(machine, "ioctl", 0, request) == EPERM


@pytest.mark.parametrize("machine", MACHINES)
def test_a_bit_that_the_kernel_ignores_gets_nothing_past_the_filter(machine: str) -> None:
    assert call(machine, "ioctl", 0, HIGH_BIT | TIOCSTI) == EPERM
    assert call(machine, "socket", HIGH_BIT | 16) == EAFNOSUPPORT
    assert call(machine, "clone", HIGH_BIT | NEWUSER | SIGCHLD) == EPERM
    assert call(machine, "unshare", HIGH_BIT | NEWUSER) == EPERM


@pytest.mark.parametrize("machine", MACHINES)
def test_the_numbers_are_those_of_the_kernels_headers(machine: str) -> None:
    if not HEADERS[machine].exists():
        pytest.skip(f"no {HEADERS[machine]}: apt-get install linux-libc-dev")
    text = HEADERS[machine].read_text()
    known = {
        m[1]: int(m[2])
        for m in re.finditer(r"^#define\s+__NR(?:3264)?_(\w+)\s+(\d+)\s*$", text, re.MULTILINE)
    }
    names = seccomp.DENIED | seccomp.JUDGED_BY_ARGUMENT
    ours = {name: seccomp.number_of(name, machine) for name in names if name in known}
    assert ours == {name: known[name] for name in ours}
    assert len(ours) >= 50
