"""Landlock for namespaces boxes: what the processes of a box may do with files, said once more by the kernel.

The mount namespace shows a box little of the machine; these rules hold even for what it shows by mistake:
writing in the temporary folders alone, no device nodes, signals and abstract sockets within the box alone
(from ABI 6 on). Runs at the head of a box's executor, so it uses nothing of ours and little of Python's.
"""

import ctypes
import os
import struct

# From <linux/landlock.h>; the numbers of the calls are the same on every architecture.
SYS_CREATE_RULESET, SYS_ADD_RULE, SYS_RESTRICT_SELF = 444, 445, 446
GET_VERSION, RULE_PATH_BENEATH = 1, 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
MAKE_CHAR, MAKE_BLOCK, TRUNCATE, IOCTL_DEV = 1 << 6, 1 << 11, 1 << 14, 1 << 15
NUM_RIGHTS_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many of the rights an ABI knows, lowest bits first; later ones add none on files."""
SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS = 3
TEMPORARY_FOLDERS = ("/tmp", "/work", "/dev/shm")

_LIBC = ctypes.CDLL(None, use_errno=True)


def abi() -> int:
    """Which version of Landlock this kernel has and enforces; 0 for none."""
    return max(_LIBC.syscall(ctypes.c_long(SYS_CREATE_RULESET), None, ctypes.c_size_t(0), GET_VERSION), 0)


def restrict(abi: int, folders: tuple[str, ...] = ()) -> None:
    """Bind this process and all that it starts, for good. Needs no-new-privileges; OSError where refused.

    folders: temporary ones beside `TEMPORARY_FOLDERS`.
    """
    known = (1 << NUM_RIGHTS_BY_ABI[min(abi, 5)]) - 1
    scoped = SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS if abi >= 6 else 0
    attributes = struct.pack("QQQ", known, 0, scoped)[: 24 if abi >= 6 else 8]
    ruleset = _call(SYS_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    read = EXECUTE | READ_FILE | READ_DIR
    rules = {"/": read, "/proc": read | WRITE_FILE | TRUNCATE}
    rules["/dev"] = read | WRITE_FILE | TRUNCATE | IOCTL_DEV
    rules |= dict.fromkeys((*TEMPORARY_FOLDERS, *folders), known & ~(MAKE_CHAR | MAKE_BLOCK))
    for path, rights in rules.items():
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        _call(SYS_ADD_RULE, ruleset, RULE_PATH_BENEATH, struct.pack("=Qi", rights & known, folder), 0)
        os.close(folder)
    _call(SYS_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _call(number: int, *arguments: object) -> int:
    result = _LIBC.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"Landlock: {os.strerror(code)}")
    return result
