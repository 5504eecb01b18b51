"""Hand in some tasks, and see what becomes of them: python order.py"""

from __future__ import annotations

from celery.exceptions import TimeLimitExceeded, WorkerLostError
from shop import app, crash, hang, price

SECONDS = 30


def main() -> None:
    prices = [price.delay([n, 2.5]) for n in range(100)]
    broken, stuck = crash.delay(), hang.delay()
    print("100 prices, their sum:", round(sum(result.get(timeout=SECONDS) for result in prices), 2))
    try:
        broken.get(timeout=SECONDS)
    except WorkerLostError as error:
        print(f"\n{error}")
    try:
        stuck.get(timeout=SECONDS)
    except TimeLimitExceeded as error:
        print(f"\n{error!r}: the worker's log tells where it was stuck")
    for node, stats in (app.control.inspect().stats() or {}).items():
        print(f"\n{node}")
        for worker in stats["pool"]["workers"]:
            print("  {name} (pid {pid}) is {state}, has done {tasks} tasks".format(**worker))


if __name__ == "__main__":
    main()
