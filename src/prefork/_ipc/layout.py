"""How the memory that pool and worker share is divided."""

from __future__ import annotations

from typing import Final

from prefork._system.stacks import BOX

BOARD: Final = 64  # bytes: the job, then when its limits' clock started, then when it was taken
RING: Final = 1 << 18  # bytes of shared memory for pickles on their way to one worker
BLACK_BOX: Final = BOARD + RING  # where it starts
MEMORY: Final = BLACK_BOX + BOX
