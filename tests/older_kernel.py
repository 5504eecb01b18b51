"""Runs a program on a kernel that lacks some calls: `older_kernel.py pidfd_open,… COMMAND …`.

A filter (seccomp(2)) answers them with ENOSYS, as an older kernel does, and some sandboxes.
Whatever the program starts has it, too.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

NUMBERS = {
    "x86_64": {"memfd_create": 319, "pidfd_send_signal": 424, "pidfd_open": 434},
    "aarch64": {"memfd_create": 279, "pidfd_send_signal": 424, "pidfd_open": 434},
}
"""Of the calls, for each architecture (asm/unistd.h)."""

# linux/filter.h, linux/seccomp.h, linux/prctl.h
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, FAIL = 0x7FFF0000, 0x00050000
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]


def lose(calls: list[str]) -> None:
    """This process cannot make them any more."""
    numbers = [NUMBERS[platform.machine()][call] for call in calls]
    instructions = [
        (LOAD, 0, 0, 0),
        *((JUMP_IF_EQUAL, len(numbers) - i, 0, number) for i, number in enumerate(numbers)),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, FAIL | errno.ENOSYS),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *i) for i in instructions))
    program = Program(len(instructions), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0),
    ):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "this system has no such filters")


if __name__ == "__main__":
    lose(sys.argv[1].split(","))
    os.execvp(sys.argv[2], sys.argv[2:])
