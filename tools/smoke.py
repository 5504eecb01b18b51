"""Does what is installed here work? `python smoke.py compiled|pure`, anywhere but in the checkout.

A few calls by each start method, a worker that is killed, a time limit; and that it is the build
which it should be. Prints one line, or fails.
"""

from __future__ import annotations

import importlib.metadata
import logging
import multiprocessing
import signal
import subprocess
import sys
import time
from operator import neg
from pathlib import Path

import prefork
from prefork import Pool, TimeLimitExceeded, WorkerLostError

DEADLINE = 60


def main(build: str) -> None:
    logging.disable()  # what the pool tells of the workers that are killed below
    check_build(build)
    for method in multiprocessing.get_all_start_methods():
        check_calls(method)
    print(f"{prefork.build_info()}: works by {', '.join(multiprocessing.get_all_start_methods())}")


def check_build(build: str) -> None:
    info = prefork.build_info()
    home = Path(prefork.__file__).parent
    assert home.is_relative_to(sys.prefix), f"this is another one: {home}"
    assert info.compiled == (build == "compiled"), info
    assert info.version == importlib.metadata.version("prefork"), info
    said = subprocess.check_output([sys.executable, "-m", "prefork", "--version"], text=True)
    assert said == f"{info}\n", said

    import prefork._policy.scheduler as module

    assert module.__file__.endswith(".py") == (build == "pure"), module.__file__


def check_calls(method: str) -> None:
    with Pool(2, context=method) as pool:
        assert pool.apply(divmod, (7, 2)) == (3, 1)
        assert pool.map(neg, range(1000)) == [-number for number in range(1000)]
        assert list(pool.imap(neg, range(100))) == [-number for number in range(100)]

        suicide = pool.apply_async(signal.raise_signal, (signal.SIGKILL,))
        expect(WorkerLostError, suicide)

        late = pool.apply_async(time.sleep, (NEVER,), timeout=0.2)
        expect(TimeLimitExceeded, late)
        assert pool.apply_async(neg, (3,)).get(DEADLINE) == -3
    assert not multiprocessing.active_children()


NEVER = 1e6


def expect(error: type[Exception], result: prefork.ApplyResult) -> None:
    try:
        value = result.get(DEADLINE)
    except error:
        return
    raise AssertionError(f"{value!r} instead of {error.__name__}")


if __name__ == "__main__":
    main(sys.argv[1])
