"""How the file that pool and worker share is divided.

Both have mapped its beginning. Far behind that is the *annex*, where objects are copied to that are
too large for the ring and too small for a file of their own: calls in one part, which the pool
writes, and results in another, which the worker does.
"""

from __future__ import annotations

from typing import Final

from prefork._system.stacks import BOX

BOARD: Final = 64
"""Bytes, in words of eight: the job; when its limits' clock started; when it was taken; how many
annexed results the pool has read; then what `page.py` has there."""
RING: Final = 1 << 18  # bytes of shared memory for pickles on their way to one worker
BLACK_BOX: Final = BOARD + RING  # where it starts
PAGE: Final = BLACK_BOX + BOX  # where it starts
PAGE_SIZE: Final = 1 << 16
MEMORY: Final = PAGE + PAGE_SIZE
CALLS: Final = 1 << 32  # where they are in the annex: the file is sparse, so that costs nothing
RESULTS: Final = 1 << 42
KEPT: Final = 1 << 22  # bytes of the annex whose memory is kept, to be written again
