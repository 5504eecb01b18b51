"""Workers that do not come to start: nobody waits for them for ever."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import Script

HANGING_MAIN = """
import sys, time
if __name__ == "__mp_main__":
    time.sleep(3600)
from prefork import Pool, PoolBrokenError
if __name__ == "__main__":
    pool = Pool(2, print, (bytes(1_000_000),), context=sys.argv[1], start_timeout=0.5)
    try:
        pool.apply(abs, (-1,))
    except PoolBrokenError as exc:
        print("not ready within" in str(exc))
    pool.terminate()
"""


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_large_initargs_for_a_main_module_that_hangs(
    script: Callable[..., Script], tmp_path: Path, method: str
) -> None:
    (tmp_path / "hanging.py").write_text(HANGING_MAIN)
    program = script(tmp_path / "hanging.py", method)
    code, out, _ = program.finish()
    assert (code, out) == (0, "True\n")
    assert program.leftovers() == {}
