"""What a pool is asked from outside, and what it answers: names and texts that both sides share.

A pool listens at an abstract Unix socket (unix(7)), whose name tells whose it is:

    prefork/<uid>/<pid>/<number of the pool in that process>

A question is one datagram, a line of text; the answer is one, too: a JSON object, compressed. So
there is no connection that somebody could leave open, and nothing of a client's is kept.
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import Any, Final, NamedTuple

__all__ = [
    "CREDENTIALS",
    "IS_SUPPORTED",
    "LONGEST_ANSWER",
    "LONGEST_QUESTION",
    "MOST_STACKS",
    "STACKS",
    "STATISTICS",
    "TERMINATE",
    "Address",
    "decode",
    "encode",
    "sender",
]

IS_SUPPORTED: Final = sys.platform == "linux" and hasattr(socket, "SO_PASSCRED")
"""Whether this system has abstract sockets, and tells who has sent a datagram."""

STATISTICS: Final = "statistics"  # what there is now
STACKS: Final = "stacks"  # and some workers' process ids: the Python stacks of those
TERMINATE: Final = "terminate"  # and a worker's process id, and the number of its job

MOST_STACKS: Final = 16  # that are asked for at once

LONGEST_QUESTION: Final = 256  # bytes
LONGEST_ANSWER: Final = 1 << 18  # bytes, compressed; no datagram is longer
_LARGEST: Final = 1 << 26  # bytes of text that are taken from an answer

CREDENTIALS: Final = struct.Struct("3i")  # process, user and group id of a sender
_PREFIX: Final = "prefork/"


class Address(NamedTuple):
    """Of one pool.

    Attributes:
        uid: the user id of its process.
        pid: the process id of that.
        number: of the pool among those that the process has made, from 1 on.
    """

    uid: int
    pid: int
    number: int

    @property
    def name(self) -> bytes:
        return f"\0{_PREFIX}{self.uid}/{self.pid}/{self.number}".encode()

    @classmethod
    def parse(cls, name: str) -> Address | None:
        """Of a name as /proc/net/unix has it; None: it is not a pool's."""
        fields = name.removeprefix(f"@{_PREFIX}").split("/")
        if not name.startswith(f"@{_PREFIX}") or len(fields) != len(cls._fields):
            return None
        if not all(field.isascii() and field.isdecimal() for field in fields):
            return None
        return cls(*map(int, fields))


def sender(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, int] | None:
    """The process and user id of who has sent a datagram, as the kernel says; None: it does not."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            pid, uid, _ = CREDENTIALS.unpack(data[: CREDENTIALS.size])
            return pid, uid
    return None


def encode(answer: dict[str, Any]) -> bytes:
    import json  # by the few that are asked
    import zlib

    return zlib.compress(json.dumps(answer, separators=(",", ":")).encode(), 1)


def decode(data: bytes) -> dict[str, Any]:
    """
    Raises:
        ValueError: it is no answer.
    """
    import json
    import zlib

    try:
        answer = json.loads(zlib.decompressobj().decompress(data, _LARGEST))
    except zlib.error as exc:
        raise ValueError(str(exc)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(answer, dict):
        raise ValueError("it is no object")
    return answer
