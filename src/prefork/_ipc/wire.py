"""What travels between the pool and a worker, and how it is written down.

A *task* goes out as a pickled call (`pickling.py`) with a fixed-size `Ticket` that says where it
lies. A *report* comes back: a fixed-size header and a pickle.

Both sides have mapped the beginning of a file that they share. Far behind that is the *annex*,
where objects are copied to that are too large for the ring and too small for a file of their own:
calls in one part, which the pool writes, and results in another, which the worker does.
"""

from __future__ import annotations

import struct
from typing import Any, Final

from prefork._system.stacks import BOX

Ticket = tuple[int, float, int, int, int, int, int]
"""The right to run one task; whoever reads it from the inbox owns the task.

- the job
- its soft limit in seconds; 0.0 is none
- the first of its items that is to be run, of a job that has several: others have run elsewhere
- where the pickled call lies in the shared memory; or in the annex, in units of `UNIT`
- its length in bytes; or how many descriptors come with it, if it is not there
- how many of these are the function's pickle, if that has one of its own
- flags
"""
TICKET: Final = struct.Struct("<QdIIIII")

# A ticket's flags.
LEAVE: Final = 1  # no task: finish and exit
ACCEPT: Final = 2  # report the start of the task
LARGE: Final = 4  # the call travels in a file of its own
IN_ANNEX: Final = 128  # it lies in the annex
WITH_FDS: Final = 256  # descriptors come with it; their number is in the length's place
UNIT: Final = 64  # bytes
LIMITED: Final = 8  # it has a time limit
KEYWORDS: Final = 16  # the arguments are a pair, (args, kwargs)
CONTEXT: Final = 512  # they are a pair of the arguments and of what is set in the task's context
BESIDE: Final = 2048  # constants come with it, in files of their own
BESIDE_IN_ANNEX: Final = 4096  # the same, but they lie in the annex, behind the call
SEEDED: Final = 8192  # the arguments are a triple: of themselves, a seed, and a position
FORGET: Final = 1 << 14  # no task: forget the constant whose key is in the place of the job
DISCARD: Final = 1 << 15
"""No task: throw away what has come through the socket for descriptors, up to the message whose
number, counted from the first one on, is in the place of the job."""
TOGETHER: Final = 1024  # the outcomes of its items tell together whether it is run again

# How to apply the function to the arguments: one of these is among the flags, too.
CALL: Final = 0  # func(*args)
MAP: Final = 32  # [func(item) for item in items]; the first exception fails the chunk
STARMAP: Final = 64  # [func(*item) for item in items]; the same
EACH: Final = 96  # like MAP, but each item has an outcome of its own
MODE: Final = 96  # these bits

AGAIN: Final = 1 << 16  # this and all above: how often the task was run before
MOST_AGAIN: Final = (1 << 16) - 1


class Kind:
    """What a report says. Those of DONE, FAILED and OUTCOMES end a job."""

    READY: Final = 0  # the worker has run its initializer
    ACCEPTED: Final = 1  # the task has started
    DONE: Final = 2  # the payload is the pickled result
    FAILED: Final = 3  # a pickled `PickledError`
    OUTCOMES: Final = 4  # a pickled list: (True, pickled result) or (False, a `PickledError`)
    EXITING: Final = 5  # the task has the process exit: its exit code, and why, as text
    BROKEN: Final = 6  # the initializer failed: a pickled `PickledError`
    LEAVING: Final = 7  # the worker leaves of itself: why, as text
    FINALIZER_FAILED: Final = 8  # it leaves all the same: a traceback, as text
    PART: Final = 9
    """OUTCOMES of some items of a job that goes on. In the place of `started` is their number, in
    that of the seconds the first of them."""
    CORRUPTED: Final = 10  # is never sent: something came here that is no report


Report = tuple[int, int, float, float, Any]
"""What a worker says.

- its kind
- the job
- when that was started (monotonic clock of the machine, seconds)
- how many seconds it ran
- the payload: bytes; a `Large`, if it is not in the report itself; or why it could not come
"""
REPORT: Final = struct.Struct("<QddQBBH4s")
"""A report's header: job, started, seconds, length, kind, where its object is, how many descriptors
belong to that, `MARK`."""

# Where a report's object is.
INSIDE: Final = 0
FILE_SENT: Final = 1  # its descriptor is on its way
ANNEXED: Final = 2  # the report has its position in the annex (`POSITION`)
POSITION: Final = struct.Struct("<Q")
MARK: Final = b"\xc1PF\xfe"
"""Ends each header, so that foreign bytes are told from reports, and the next report is found
behind them. No task's text in UTF-8 contains it."""


def next_report(data: bytes, position: int) -> int:
    """Where a report may start, from this position on: where a mark says so, or at the end."""
    mark = data.find(MARK, position + REPORT.size - len(MARK))
    if mark < 0:
        return max(position, len(data) - REPORT.size + 1)
    return mark + len(MARK) - REPORT.size


INLINE: Final = 1 << 16
"""Pickles above this many bytes travel in a file of their own, as a *payload*."""


# ---- how the shared file is divided

BOARD: Final = 128
"""Bytes, in words of eight: the job; when its limits' clock started; when it was taken; how many
annexed results the pool has read; what `page.py` has there; and the start of what runs, as above,
once its soft limit has been raised there."""
HEEDED: Final = 8  # that last word
RING: Final = 1 << 18  # bytes of shared memory for pickles on their way to one worker
BLACK_BOX: Final = BOARD + RING  # where it starts
PAGE: Final = BLACK_BOX + BOX  # where it starts
PAGE_SIZE: Final = 1 << 16
MEMORY: Final = PAGE + PAGE_SIZE
CALLS: Final = 1 << 32  # where they are in the annex: the file is sparse, so that costs nothing
RESULTS: Final = 1 << 42
KEPT: Final = 1 << 22  # bytes of the annex whose memory is kept, to be written again
