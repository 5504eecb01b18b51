"""Asks the pools of this machine what they do, from another process (see `questions.py`)."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Iterable
from typing import Any, Final

from prefork._inspection.questions import (
    CREDENTIALS,
    IS_SUPPORTED,
    LONGEST_ANSWER,
    MOST_STACKS,
    STACKS,
    STATISTICS,
    TERMINATE,
    Address,
    decode,
    sender,
)
from prefork._system.resources import read_text

__all__ = ["AskingError", "ask", "ask_all", "find", "stacks", "terminate"]

ANSWER_SECONDS: Final = 2.0
"""So long an answer is waited for. It takes a millisecond, if the pool's process runs; where many
ask, nobody may be heard for a second."""
STACK_SECONDS: Final = 1.5  # for a worker to write its stack
_PAUSE: Final = 0.005  # seconds between two questions for the same stack, at first

_NAMES: Final = "/proc/net/unix"


class AskingError(Exception):
    """Why a pool does not tell; one line."""


def find(pid: int | None = None) -> list[Address]:
    """The pools of this user (of all users, for root) on this machine.

    Args:
        pid: of the process whose pools they are to be.

    Raises:
        AskingError: there is none of that process, or pools cannot be found here.
    """
    if not IS_SUPPORTED:
        raise AskingError("this system has no abstract Unix sockets, by which pools are asked")
    if pid is not None:
        _check(pid)
    me = os.geteuid()
    names = (line.split()[-1] for line in read_text(_NAMES).splitlines() if "@prefork/" in line)
    found = {address for name in names if (address := Address.parse(name))}
    mine = sorted(each for each in found if me in (each.uid, 0))
    if pid is None:
        return mine
    its = [each for each in mine if each.pid == pid]
    if not its:
        raise AskingError(f"process {pid} has no pool that can be asked")
    return its


def _check(pid: int) -> None:
    """
    Raises:
        AskingError: this process cannot be asked.
    """
    try:
        uid = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        raise AskingError(f"there is no process {pid}") from None
    if uid != os.geteuid() != 0:
        raise AskingError(f"process {pid} is another user's")


def ask_all(
    addresses: Iterable[Address], question: str = STATISTICS
) -> dict[Address, dict[str, Any] | AskingError]:
    """What these pools answer; or why there is no answer."""
    deadline = time.monotonic() + ANSWER_SECONDS
    told: dict[Address, dict[str, Any] | AskingError] = {}
    with contextlib.ExitStack() as sockets:
        asked: dict[int, tuple[Address, socket.socket]] = {}
        poll = select.poll()
        for address in dict.fromkeys(addresses):
            try:
                asking = sockets.enter_context(_ask(address, question))
            except AskingError as exc:
                told[address] = exc
            else:
                asked[asking.fileno()] = address, asking
                poll.register(asking, select.POLLIN)
        while asked and (left := deadline - time.monotonic()) > 0:
            for fd, _ in poll.poll(left * 1000):
                address, asking = asked[fd]
                if (answer := _receive(address, asking)) is not None:
                    told[address] = answer
                    poll.unregister(fd)
                    del asked[fd]
        told |= {address: _silent(address) for address, _ in asked.values()}
    return told


def ask(address: Address, question: str = STATISTICS) -> dict[str, Any]:
    """
    Raises:
        AskingError: there is no answer.
    """
    answer = ask_all([address], question)[address]
    if isinstance(answer, AskingError):
        raise answer
    if error := answer.get("error"):
        raise AskingError(f"{_name(address)}: {error}")
    return answer


def stacks(address: Address, pids: Iterable[int]) -> dict[int, str]:
    """The Python stacks of these workers; or why there is none, in parentheses. Each is asked for
    again and again, until the worker has written it: the pool waits for nobody.

    Raises:
        AskingError: the pool does not answer.
    """
    deadline = time.monotonic() + STACK_SECONDS
    left = list(pids)
    found: dict[int, str] = {}
    pause = _PAUSE
    while left and time.monotonic() < deadline:
        for first in range(0, len(left), MOST_STACKS):
            question = " ".join([STACKS, *map(str, left[first : first + MOST_STACKS])])
            told = ask(address, question).get("stacks")
            if isinstance(told, dict):
                found |= {
                    pid: told[str(pid)] for pid in left if isinstance(told.get(str(pid)), str)
                }
        left = [pid for pid in left if pid not in found]
        if left:
            time.sleep(pause)
            pause *= 2.0
    return found | dict.fromkeys(left, "(it does not take signals)")


def terminate(address: Address, pid: int, job: int) -> None:
    """End the job of this number, if this worker runs it.

    Raises:
        AskingError: the pool does not answer, or does not allow it, or that job runs no more.
    """
    ask(address, f"{TERMINATE} {pid} {job}")


def _ask(address: Address, question: str) -> socket.socket:
    """
    Raises:
        AskingError: nobody is there who could hear it.
    """
    if read_text(f"/proc/{address.pid}/stat").rpartition(")")[2].split()[:1] in (["T"], ["t"]):
        raise AskingError(
            f"process {address.pid} is stopped (kill -CONT {address.pid} continues it)"
        )
    asking = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        asking.bind("")  # any name: what is answered goes there
        asking.connect(address.name)
        asking.setblocking(False)
        asking.send(question.encode())
    except BlockingIOError:  # its queue is full: as many ask, and it hears nobody
        asking.close()
        raise _silent(address) from None
    except OSError as exc:
        asking.close()
        if isinstance(exc, ConnectionError):
            raise AskingError(f"{_name(address)} has ended") from None
        raise AskingError(f"{_name(address)} cannot be asked: {exc.strerror}") from None
    except BaseException:
        asking.close()
        raise
    return asking


def _receive(address: Address, asking: socket.socket) -> dict[str, Any] | AskingError | None:
    """None: nothing has come from it."""
    try:
        data, ancillary, _, _ = asking.recvmsg(
            LONGEST_ANSWER, socket.CMSG_SPACE(CREDENTIALS.size), socket.MSG_CMSG_CLOEXEC
        )
    except BlockingIOError:
        return None
    except OSError:
        return AskingError(f"{_name(address)} has ended")
    who = sender(ancillary)
    if who is None or who[1] != address.uid:  # anybody may take such a name
        return AskingError(f"{_name(address)} is not what it says")
    try:
        return decode(data)
    except ValueError as exc:
        return AskingError(f"{_name(address)} answers what cannot be understood: {exc}")


def _silent(address: Address) -> AskingError:
    try:
        _check(address.pid)
        find(address.pid)
    except AskingError:
        return AskingError(f"{_name(address)} has ended")
    return AskingError(
        f"{_name(address)} does not answer: its process is busy, or the pool has no threads and "
        "nobody drives it"
    )


def _name(address: Address) -> str:
    return f"pool {address.number} of process {address.pid}"
