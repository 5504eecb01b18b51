"""Runs CPython's own tests of `concurrent.futures.ProcessPoolExecutor` on ours:

futures_runner.py METHOD PART

METHOD is a start method; PART is one of those in `PARTS`.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib
import sys
import unittest

PARTS = {
    "AsCompleted": 5,
    "ExecutorDeadlock": 7,
    "FailingInitializer": 1,
    "Initializer": 1,
    "ProcessPoolExecutor": 13,
    "ProcessPoolShutdown": 8,
    "Wait": 7,
}
"""What is run, and how many tests there are at least."""

LEFT_OUT = {
    "test_killed_child": "there, the death of a worker breaks the pool; here, it does not",
    "test_force_shutdown_workers_dead_pool": "likewise",
    "test_force_shutdown_workers": "it replaces methods of the workers' process objects; what "
    "these calls do is in test_executor.py",
    "test_force_shutdown_workers_invalid_op": "it calls a private method",
    "test_ressources_gced_in_workers": "it needs the pool to be idle for an event of a manager",
    "test_max_tasks_per_child": "with fork it expects an error: here, any start method will do",
    "test_saturation": "it reads a private semaphore, and counts workers that are started on "
    "demand: here, all are started at once",
    "test_idle_process_reuse_one": "likewise",
    "test_idle_process_reuse_multiple": "likewise",
    "test_processes_terminate": "it counts those, and then waits for them by their objects",
    "test_crash_big_data": "it breaks the pool by an exit in an unpickled object, and replaces "
    "private parts",
}


def main(method: str, part: str) -> int:
    name = f"ProcessPool{method.capitalize()}{part}Test"
    tests = unittest.TestSuite()
    for module in modules():
        if (cls := getattr(module, name, None)) is not None:
            prepare(cls)
            found = unittest.defaultTestLoader.loadTestsFromTestCase(cls)
            tests.addTests(each for each in found if each._testMethodName not in LEFT_OUT)
    result = unittest.TextTestRunner(verbosity=2).run(tests)
    print(f"{result.testsRun} of {PARTS[part]}")
    return not result.wasSuccessful() or result.testsRun < PARTS[part]


def modules():
    package = importlib.import_module("test.test_concurrent_futures")
    if not hasattr(package, "__path__"):  # Python 3.11
        return [package]
    names = ("as_completed", "deadlock", "init", "process_pool", "shutdown", "wait")
    return [importlib.import_module(f"{package.__name__}.test_{name}") for name in names]


def prepare(cls) -> None:
    if hasattr(cls, "_assert_logged"):  # in the worker; here, it is logged in the pool's process
        cls._assert_logged = lambda self, message: contextlib.nullcontext()


class _ManagerThread:
    def __init__(self, executor) -> None:
        self._pool = executor.pool

    def join(self) -> None:
        self._pool.join()


class _CallQueue:
    def join_thread(self) -> None:
        pass


if __name__ == "__main__":
    import prefork

    class ProcessPoolExecutor(prefork.ProcessPoolExecutor):
        """With names of the inside that the tests wait for."""

        @property
        def _executor_manager_thread(self) -> _ManagerThread:
            return _ManagerThread(self)

        @property
        def _call_queue(self) -> _CallQueue:
            return _CallQueue()

    concurrent.futures.ProcessPoolExecutor = ProcessPoolExecutor
    sys.exit(main(*sys.argv[1:]))
